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

/* Running counts of a whole chunk. A product by 0x0101... adds up the bytes below each byte of a word. */
static int64_t NAME(count)(const uint8_t *mask, int64_t t, REAL *count) {
  for (int64_t j = 0; j < CHUNK; j += 8) {
    uint8_t running[8];
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t word;
    memcpy(&word, mask + j, 8);
    word *= UINT64_C(0x0101010101010101);
    memcpy(running, &word, 8);
#else
    running[0] = mask[j];
    for (int k = 1; k < 8; k++) running[k] = running[k - 1] + mask[j + k];
#endif
    REAL before = (REAL)t;
    VECTOR for (int k = 0; k < 8; k++) count[j + k] = (REAL)running[k] + before;
    t += running[7];
  }
  return t;
}

/* Running sums of a whole chunk. Four quarters run side by side, as one chain of additions waits for itself. */
static double NAME(prefix)(const REAL *d, double c, double *sum) {
  enum { Q = CHUNK / 4 };
  double c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  for (int64_t j = 0; j < Q; j++) {
    sum[j] = c0 += d[j];
    sum[j + Q] = c1 += d[j + Q];
    sum[j + 2 * Q] = c2 += d[j + 2 * Q];
    sum[j + 3 * Q] = c3 += d[j + 3 * Q];
  }
  double before[4] = {c, c + c0, c + c0 + c1, c + c0 + c1 + c2};
  for (int64_t q = 0; q < 4; q++) {
    double *s = sum + q * Q, base = before[q];
    VECTOR for (int64_t j = 0; j < Q; j++) s[j] += base;
  }
  return sum[CHUNK - 1];
}

/* Token log ratios to the ratio's statistic, in place, and counts of generated tokens so far. */
static void NAME(accumulate)(const Plan *plan, int64_t n, const uint8_t *mask, REAL *x, REAL *t, double fixed,
                             NAME(Carry) *carry) {
  int64_t count = (int64_t)carry->t;
  if (n == CHUNK && (plan->ratio == CUMULATIVE || plan->ratio == PREFIX_MEAN)) {
    double sum[CHUNK];
    carry->c = NAME(prefix)(x, carry->c, sum);
    if (plan->power != 0 || plan->ratio == PREFIX_MEAN) {
      carry->t = (double)NAME(count)(mask, count, t);
    }
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

/* What tokens are clipped by: their advantages, and the bounds at t = 1 that bind for its sign. */
typedef struct { REAL advantage[CHUNK], low[CHUNK], high[CHUNK]; } NAME(Bases);

/* `step` is 0 for one advantage a sequence. */
static void NAME(bases)(const Plan *plan, int64_t n, const REAL *a, int64_t step, NAME(Bases) *out) {
  REAL far = (REAL)plan->far, low = (REAL)plan->low, high = (REAL)plan->high, dual = (REAL)plan->dual;
  int by_sign = plan->by_sign != 0;
  VECTOR for (int64_t j = 0; j < n; j++) {
    REAL one = a[step ? j : 0], harmed = one < 0 ? dual : far;
    out->advantage[j] = one;
    out->low[j] = !by_sign || one < 0 ? low : -far;
    out->high[j] = !by_sign || one > 0 ? high : harmed;
  }
}

/* Clip and truncate a chunk's statistic: exponents of the weights that count into `x`, of the losses into `exponent`,
   1 into `met` where a bound was met; counts and moments. Returns whether any was. `moving` is known when compiled. */
static inline ALWAYS int NAME(clip)(const Plan *plan, int64_t n, const REAL *keep, const REAL *scale,
                                    const NAME(Bases) *bases, int moving, REAL *x, REAL *exponent, REAL *met,
                                    double *sums) {
  REAL cap = (REAL)plan->log_cap, limit = (REAL)plan->exp_cap, widest = (REAL)plan->widest, far = (REAL)plan->far;
  REAL fixed = (REAL)plan->ceiling, ups = 0, lows = 0, duals = 0, sx = 0, sxx = 0, lowest = far, highest = -far;
  REAL by_sign = (REAL)plan->by_sign;
#pragma omp simd reduction(+ : ups, lows, duals, sx, sxx) reduction(min : lowest) reduction(max : highest)
  for (int64_t j = 0; j < n; j++) {
    REAL k = keep[j], value = k != 0 ? x[j] : (REAL)0; /* 0 lies within every region */
    REAL low = bases->low[j] * scale[j], high = bases->high[j] * scale[j];
    REAL up = value > high ? (REAL)1 : (REAL)0, down = value < low ? (REAL)1 : (REAL)0;
    REAL clipped = value > high ? high : value;
    clipped = clipped < low ? low : clipped;
    REAL top = fixed;
    if (moving) {
      top = widest * scale[j];
      top = top > limit ? limit : top;
      top = top < cap ? cap : top;
    }
    REAL cut = value < top ? value : top;
    ups += up;
    duals += bases->advantage[j] < 0 ? up : (REAL)0;
    lows += down;
    sx += cut;
    sxx += cut * cut;
    REAL least = k != 0 ? cut : far, most = k != 0 ? cut : -far;
    lowest = least < lowest ? least : lowest;
    highest = most > highest ? most : highest;
    x[j] = cut;
    exponent[j] = clipped < top ? clipped : top;
    met[j] = up + down;
  }
  sums[HIGH] += ups - duals * by_sign;
  sums[LOW] += lows;
  sums[DUAL] += duals * by_sign;
  sums[X] += sx;
  sums[XX] += sxx;
  if (lowest < sums[LOWEST]) sums[LOWEST] = lowest;
  if (highest > sums[HIGHEST]) sums[HIGHEST] = highest;
  return ups + lows > 0;
}

/* Weights from their exponents, in place, and their sums. */
static void NAME(weigh)(int64_t n, const REAL *keep, REAL *x, double *sums) {
  REAL sw = 0, sww = 0;
#pragma omp simd reduction(+ : sw, sww)
  for (int64_t j = 0; j < n; j++) {
    REAL w = keep[j] * EXP(x[j]);
    x[j] = w;
    sw += w;
    sww += w * w;
  }
  if (sww < (REAL)1e36) {
    sums[W] += sw;
    sums[WW] += sww;
    return;
  }
  for (int64_t j = 0; j < n; j++) { /* squares beyond float's range */
    double w = x[j];
    sums[W] += w;
    sums[WW] += w * w;
  }
}

/* What a chunk's tokens leave; absent where null. */
typedef struct { REAL *loss, *slope, *grad; uint8_t *active, *kept; } NAME(Outputs);

static NAME(Outputs) NAME(at)(NAME(Outputs) all, int64_t b) {
  if (all.slope) all.slope += b;
  if (all.grad) all.grad += b;
  if (all.active) all.active += b;
  if (all.kept) all.kept += b;
  all.loss += b;
  return all;
}

/* A chunk without tokens. Its activity bits stay unwritten: they would multiply slopes of 0. */
static void NAME(skip)(int64_t n, NAME(Outputs) out) {
  memset(out.loss, 0, n * sizeof(REAL));
  if (out.slope) memset(out.slope, 0, n * sizeof(REAL));
  if (out.grad) memset(out.grad, 0, n * sizeof(REAL));
  if (out.kept) memset(out.kept, 0, n);
}

/* Token losses of a chunk, everything counted of them, and the gradient. */
static void NAME(terms)(const Plan *plan, int64_t n, const REAL *logps, const NAME(Bases) *bases, const REAL *factor,
                        REAL *x, const REAL *keep, const REAL *scale, NAME(Outputs) out, double *sums) {
  REAL exponent[CHUNK], met[CHUNK], total = 0, *loss = out.loss;
  int any = isnan(plan->ceiling) ? NAME(clip)(plan, n, keep, scale, bases, 1, x, exponent, met, sums)
                                 : NAME(clip)(plan, n, keep, scale, bases, 0, x, exponent, met, sums);
  NAME(weigh)(n, keep, x, sums);
  if (any) {
    VECTOR for (int64_t j = 0; j < n; j++) loss[j] = keep[j] != 0 ? -bases->advantage[j] * EXP(exponent[j]) : (REAL)0;
  } else { /* then the weights are those of the loss */
    VECTOR for (int64_t j = 0; j < n; j++) loss[j] = keep[j] != 0 ? -bases->advantage[j] * x[j] : (REAL)0;
  }
  if (out.slope) {
    memcpy(out.slope, loss, n * sizeof(REAL));
    VECTOR for (int64_t j = 0; j < n; j++) {
      REAL logp = keep[j] != 0 ? logps[j] : (REAL)0;
      loss[j] = out.slope[j] * logp;
    }
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) out.active[j] = met[j] == 0;
  }
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; j++) total += loss[j] * factor[j];
  sums[LOSS] += total;
  if (out.grad && out.slope) {
    VECTOR for (int64_t j = 0; j < n; j++) out.grad[j] = out.slope[j] * factor[j];
  } else if (out.grad) {
    VECTOR for (int64_t j = 0; j < n; j++) out.grad[j] = met[j] == 0 ? loss[j] * factor[j] : (REAL)0;
  }
  if (out.kept)
    for (int64_t j = 0; j < n; j++) out.kept[j] = keep[j] != 0;
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
               REAL *loss, uint8_t *active, REAL *slope, uint8_t *kept, REAL *grad, double *sums) {
  REAL x[CHUNK], t[CHUNK], keep[CHUNK], factors[CHUNK];
  NAME(Bases) bases;
  NAME(Outputs) all = {loss, slope, grad, active, kept};
  int64_t a_step = plan->advantage_per_token;
  for (int64_t i = 0; i < sequences; i++) {
    NAME(Carry) carry = {0, 0, plan->far};
    int64_t start = bounds[i], length = bounds[i + 1] - start;
    double fixed = 0, count = 0, before = sums[TOKENS];
    if (plan->ratio == SEQUENCE) {
      NAME(totals)(plan, length, logps + start, old + start, mask + start, &fixed, &count);
      if (mean) fixed /= count > 1 ? count : 1;
    }
    int64_t first = length < CHUNK ? length : CHUNK;
    if (!a_step) NAME(bases)(plan, first, advantage + i, 0, &bases);
    for (int64_t j = 0; j < first && f_kind < 2; j++) factors[j] = factor[f_kind == 1 ? i : 0];
    for (int64_t b = start; b < start + length; b += CHUNK) {
      int64_t left = start + length - b, n = left < CHUNK ? left : CHUNK;
      NAME(Outputs) out = NAME(at)(all, b);
      if (!memchr(mask + b, 1, n)) {
        NAME(skip)(n, out);
        continue;
      }
      NAME(load)(plan, n, logps + b, old + b, mask + b, x, keep, sums);
      NAME(accumulate)(plan, n, mask + b, x, t, fixed, &carry);
      NAME(scale)(plan->power, n, t);
      if (a_step) NAME(bases)(plan, n, advantage + b, 1, &bases);
      NAME(terms)(plan, n, logps + b, &bases, f_kind == 2 ? factor + b : factors, x, keep, t, out, sums);
    }
    sums[SEQUENCES] += sums[TOKENS] > before;
  }
}
