/* Included by native.c once for each type. */

/* Token log ratios of a chunk, 0 where unusable; usable tokens as 0/1; sums of both. */
static void NAME(load)(const Plan *plan, int64_t n, const REAL *logps, const REAL *old, const uint8_t *mask, REAL *d,
                       REAL *keep, double *sums) {
  REAL bound = (REAL)plan->saturation, sd = 0, sdd = 0, sk3 = 0, marked = 0, usable = 0;
  VECTOR for (int64_t j = 0; j < n; j++) keep[j] = (REAL)mask[j];
#pragma omp simd reduction(+ : sd, sdd, sk3, marked, usable)
  for (int64_t j = 0; j < n; j++) {
    REAL raw = logps[j] - old[j], m = keep[j];
    REAL k = ABS(raw) <= bound ? m : (REAL)0; /* false for NaN */
    REAL value = k != 0 ? raw : (REAL)0;
    d[j] = value;
    keep[j] = k;
    marked += m;
    usable += k;
    sd += value;
    sdd += value * value;
    sk3 += (EXP(value) - (REAL)1) - value;
  }
  sums[TOKENS] += marked;
  sums[USABLE] += usable;
  sums[D] += sd;
  sums[DD] += sdd;
  sums[K3] += sk3;
  if (usable == marked) return;
  for (int64_t j = 0; j < n; j++)
    if (mask[j] && keep[j] == 0) sums[isfinite(logps[j]) && isfinite(old[j]) ? SATURATED : NONFINITE] += 1;
}

typedef struct { double c, t, least; } NAME(Carry);

/* Running sums of a whole chunk. Four quarters run side by side, as one chain of additions waits for itself. */
static void NAME(prefix)(const REAL *d, const uint8_t *mask, double c, int64_t t, double *sum, REAL *count) {
  enum { Q = CHUNK / 4 };
  double c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  int32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0, counts[CHUNK];
  for (int64_t j = 0; j < Q; j++) {
    sum[j] = c0 += d[j];
    sum[j + Q] = c1 += d[j + Q];
    sum[j + 2 * Q] = c2 += d[j + 2 * Q];
    sum[j + 3 * Q] = c3 += d[j + 3 * Q];
    counts[j] = t0 += mask[j];
    counts[j + Q] = t1 += mask[j + Q];
    counts[j + 2 * Q] = t2 += mask[j + 2 * Q];
    counts[j + 3 * Q] = t3 += mask[j + 3 * Q];
  }
  double before[4] = {c, c + c0, c + c0 + c1, c + c0 + c1 + c2};
  int64_t earlier[4] = {t, t + t0, t + t0 + t1, t + t0 + t1 + t2};
  for (int64_t q = 0; q < 4; q++) {
    double *s = sum + q * Q, base = before[q];
    REAL *n = count + q * Q, start = (REAL)earlier[q];
    int32_t *k = counts + q * Q;
    VECTOR for (int64_t j = 0; j < Q; j++) s[j] += base;
    VECTOR for (int64_t j = 0; j < Q; j++) n[j] = (REAL)k[j] + start;
  }
}

/* Token log ratios to the ratio's statistic, in place, and counts of generated tokens so far. */
static void NAME(accumulate)(const Plan *plan, int64_t n, const uint8_t *mask, REAL *x, REAL *t, double fixed,
                             NAME(Carry) *carry) {
  int64_t count = (int64_t)carry->t;
  if (n == CHUNK && (plan->ratio == CUMULATIVE || plan->ratio == PREFIX_MEAN)) {
    double sum[CHUNK];
    NAME(prefix)(x, mask, carry->c, count, sum, t);
    carry->c = sum[CHUNK - 1];
    carry->t = (double)t[CHUNK - 1];
    if (plan->ratio == CUMULATIVE) {
      VECTOR for (int64_t j = 0; j < CHUNK; j++) x[j] = (REAL)sum[j];
    } else {
      VECTOR for (int64_t j = 0; j < CHUNK; j++) x[j] = (REAL)(sum[j] / (t[j] > 1 ? t[j] : 1));
    }
    return;
  }
  if (plan->power != 0 || plan->ratio == PREFIX_MEAN)
    for (int64_t j = 0; j < n; j++) t[j] = (REAL)(count += mask[j] != 0);
  carry->t = (double)count;
  double c = carry->c, least = carry->least;
  switch (plan->ratio) {
    case CUMULATIVE:
      for (int64_t j = 0; j < n; j++) x[j] = (REAL)(c += x[j]);
      break;
    case PREFIX_MEAN:
      for (int64_t j = 0; j < n; j++) {
        c += x[j];
        x[j] = (REAL)(c / (t[j] > 1 ? t[j] : 1));
      }
      break;
    case MIN_PREFIX:
      for (int64_t j = 0; j < n; j++) {
        REAL d = x[j];
        x[j] = least < plan->far ? (REAL)(d + least) : d;
        if (mask[j] && d < least) least = d;
      }
      break;
    case SEQUENCE:
      for (int64_t j = 0; j < n; j++) x[j] = (REAL)fixed;
      break;
    case UNIT:
      memset(x, 0, n * sizeof(REAL));
  }
  carry->c = c;
  carry->least = least;
}

/* Positions to the scale of the bounds. */
static void NAME(scale)(double power, int64_t n, REAL *t) {
  if (power == 0.5) {
    VECTOR for (int64_t j = 0; j < n; j++) t[j] = SQRT(t[j]);
  } else if (power == -0.5) {
    VECTOR for (int64_t j = 0; j < n; j++) t[j] = (REAL)1 / SQRT(t[j] > 1 ? t[j] : 1);
  } else if (power == 0) {
    VECTOR for (int64_t j = 0; j < n; j++) t[j] = 1;
  } else {
    for (int64_t j = 0; j < n; j++) t[j] = POW(power < 0 && t[j] < 1 ? 1 : t[j], (REAL)power);
  }
}

/* Bounds of a chunk's tokens: those that bind for the sign of the advantage. `a_step` is 0 for one a sequence. */
static void NAME(bounds)(const Plan *plan, int64_t n, const REAL *a, int64_t a_step, const REAL *keep,
                         const REAL *scale, REAL *advantage, REAL *lower, REAL *upper) {
  REAL far = (REAL)plan->far, low = (REAL)plan->low, high = (REAL)plan->high, dual = (REAL)plan->dual;
  if (a_step) {
    VECTOR for (int64_t j = 0; j < n; j++) advantage[j] = keep[j] != 0 ? a[j] : (REAL)0;
  } else {
    REAL one = a[0];
    VECTOR for (int64_t j = 0; j < n; j++) advantage[j] = keep[j] != 0 ? one : (REAL)0;
  }
  if (plan->surrogate == MIN_CLIP) {
    VECTOR for (int64_t j = 0; j < n; j++) {
      lower[j] = (advantage[j] < 0 ? low : -far) * scale[j];
      REAL harmed = advantage[j] < 0 ? dual : far;
      upper[j] = (advantage[j] > 0 ? high : harmed) * scale[j];
    }
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) {
      lower[j] = low * scale[j];
      upper[j] = high * scale[j];
    }
  }
}

/* Clip and truncate a chunk's statistic: exponents of the weights that count into `x`, of the losses into `lower`,
   1 into `upper` where a bound was met; counts and moments. */
static void NAME(clip)(const Plan *plan, int64_t n, const REAL *keep, const REAL *scale, const REAL *advantage,
                       REAL *x, REAL *lower, REAL *upper, double *sums) {
  REAL cap = (REAL)plan->log_cap, limit = (REAL)plan->exp_cap, widest = (REAL)plan->widest, far = (REAL)plan->far;
  REAL fixed = (REAL)plan->ceiling, highs = 0, lows = 0, duals = 0, sx = 0, sxx = 0, lowest = far, highest = -far;
  REAL by_sign = plan->surrogate == MIN_CLIP;
  int moving = isnan(plan->ceiling);
#pragma omp simd reduction(+ : highs, lows, duals, sx, sxx) reduction(min : lowest) reduction(max : highest)
  for (int64_t j = 0; j < n; j++) {
    REAL k = keep[j], value = k != 0 ? x[j] : (REAL)0, low = lower[j], high = upper[j];
    REAL up = value > high ? (REAL)1 : (REAL)0, down = value < low ? (REAL)1 : (REAL)0;
    REAL worse = advantage[j] < 0 ? up * by_sign : (REAL)0;
    REAL clipped = value > high ? high : value;
    clipped = clipped < low ? low : clipped;
    REAL top = widest * scale[j];
    top = top > limit ? limit : top;
    top = top < cap ? cap : top;
    top = moving ? top : fixed;
    REAL cut = value < top ? value : top;
    highs += up - worse;
    duals += worse;
    lows += down;
    sx += cut;
    sxx += cut * cut;
    REAL least = k != 0 ? cut : far, most = k != 0 ? cut : -far;
    lowest = least < lowest ? least : lowest;
    highest = most > highest ? most : highest;
    x[j] = cut;
    lower[j] = clipped < top ? clipped : top;
    upper[j] = up + down;
  }
  sums[HIGH] += highs;
  sums[LOW] += lows;
  sums[DUAL] += duals;
  sums[X] += sx;
  sums[XX] += sxx;
  if (lowest < sums[LOWEST]) sums[LOWEST] = lowest;
  if (highest > sums[HIGHEST]) sums[HIGHEST] = highest;
}

static void NAME(weigh)(int64_t n, const REAL *keep, const REAL *exponent, double *sums) {
  REAL sw = 0, sww = 0;
#pragma omp simd reduction(+ : sw, sww)
  for (int64_t j = 0; j < n; j++) {
    REAL w = keep[j] * EXP(exponent[j]);
    sw += w;
    sww += w * w;
  }
  if (sww < (REAL)1e36) {
    sums[W] += sw;
    sums[WW] += sww;
    return;
  }
  for (int64_t j = 0; j < n; j++) { /* squares beyond float's range */
    double w = keep[j] * EXP(exponent[j]);
    sums[W] += w;
    sums[WW] += w * w;
  }
}

/* Token losses of a chunk and everything counted of them; steps are 0 for one value a sequence. */
static void NAME(terms)(const Plan *plan, int64_t n, const REAL *logps, const REAL *a, int64_t a_step,
                        const REAL *factor, int64_t f_step, REAL *x, const REAL *keep, const REAL *scale,
                        REAL *loss, uint8_t *active, REAL *slope, double *sums) {
  REAL advantage[CHUNK], lower[CHUNK], upper[CHUNK], total = 0;
  NAME(bounds)(plan, n, a, a_step, keep, scale, advantage, lower, upper);
  NAME(clip)(plan, n, keep, scale, advantage, x, lower, upper, sums);
  NAME(weigh)(n, keep, x, sums);
  VECTOR for (int64_t j = 0; j < n; j++) loss[j] = -advantage[j] * EXP(lower[j]);
  if (plan->surrogate == WEIGHT) {
    memcpy(slope, loss, n * sizeof(REAL));
    VECTOR for (int64_t j = 0; j < n; j++) {
      REAL logp = keep[j] != 0 ? logps[j] : (REAL)0;
      loss[j] = slope[j] * logp;
    }
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) active[j] = upper[j] == 0;
  }
  if (f_step) {
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += loss[j] * factor[j];
  } else {
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += loss[j];
    total *= factor[0];
  }
  sums[LOSS] += total;
}

/* Sums of log ratios and counts of tokens of one sequence. */
static void NAME(totals)(const Plan *plan, int64_t n, const REAL *logps, const REAL *old, const uint8_t *mask,
                         double *total, double *count) {
  double c = 0, t = 0;
  for (int64_t j = 0; j < n; j++) {
    REAL raw = logps[j] - old[j];
    c += mask[j] && ABS(raw) <= (REAL)plan->saturation ? raw : 0;
    t += mask[j] != 0;
  }
  *total = c;
  *count = t;
}

/* Sequences [bounds[i], bounds[i + 1]) of the flat tokens; `mean` divides a sequence's statistic by its length. */
void NAME(run)(const Plan *plan, int64_t sequences, const int64_t *bounds, int64_t mean, const REAL *logps,
               const REAL *old, const uint8_t *mask, const REAL *advantage, const REAL *factor, int64_t f_kind,
               REAL *loss, uint8_t *active, REAL *slope, uint8_t *kept, double *sums) {
  REAL x[CHUNK], t[CHUNK], keep[CHUNK];
  for (int64_t i = 0; i < sequences; i++) {
    NAME(Carry) carry = {0, 0, plan->far};
    double fixed = 0, count = 0, before = sums[TOKENS];
    if (plan->ratio == SEQUENCE) {
      int64_t b = bounds[i];
      NAME(totals)(plan, bounds[i + 1] - b, logps + b, old + b, mask + b, &fixed, &count);
      if (mean) fixed /= count > 1 ? count : 1;
    }
    for (int64_t b = bounds[i]; b < bounds[i + 1]; b += CHUNK) {
      int64_t n = bounds[i + 1] - b < CHUNK ? bounds[i + 1] - b : CHUNK;
      NAME(load)(plan, n, logps + b, old + b, mask + b, x, keep, sums);
      NAME(accumulate)(plan, n, mask + b, x, t, fixed, &carry);
      NAME(scale)(plan->power, n, t);
      const REAL *a = advantage + (plan->advantage_per_token ? b : i);
      const REAL *f = factor + (f_kind == 2 ? b : f_kind == 1 ? i : 0);
      NAME(terms)(plan, n, logps + b, a, plan->advantage_per_token, f, f_kind == 2, x, keep, t, loss + b, active + b,
                  slope + b, sums);
      if (kept)
        for (int64_t j = 0; j < n; j++) kept[b + j] = keep[j] != 0;
    }
    sums[SEQUENCES] += sums[TOKENS] > before;
  }
}

/* Gradients of active tokens: slope times scale, one scale a row. */
void NAME(pull)(int64_t rows, int64_t length, const REAL *slope, const uint8_t *active, const REAL *scale,
                int64_t step, REAL *grad) {
  for (int64_t i = 0; i < rows; i++) {
    REAL s = scale[i * step];
    VECTOR for (int64_t j = i * length; j < (i + 1) * length; j++) grad[j] = slope[j] * s * (REAL)active[j];
  }
}
