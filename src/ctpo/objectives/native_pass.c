/* Included by native.c once for each type. */

/* Token log ratios of a chunk, 0 where unusable; usable tokens as 0/1; sums of both. */
static void NAME(load)(const Plan *plan, int64_t n, const REAL *logps, const REAL *old, const uint8_t *mask, REAL *d,
                       REAL *keep, double *sums) {
  REAL bound = (REAL)plan->saturation, sd = 0, sdd = 0, sk3 = 0, marked = 0, usable = 0;
#pragma omp simd reduction(+ : sd, sdd, sk3, marked, usable)
  for (int64_t j = 0; j < n; j++) {
    REAL raw = logps[j] - old[j], m = mask[j] ? (REAL)1 : (REAL)0;
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

/* Token log ratios to the ratio's statistic, in place, and counts of generated tokens so far. */
static void NAME(accumulate)(const Plan *plan, int64_t n, const uint8_t *mask, REAL *x, REAL *t, double fixed,
                             NAME(Carry) *carry) {
  int64_t count = (int64_t)carry->t;
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

/* Token losses of a chunk and everything counted of them. `a_step` and `f_step` are 0 for one value a sequence. */
static void NAME(terms)(const Plan *plan, int64_t n, const REAL *logps, const REAL *advantage, int64_t a_step,
                        const REAL *factor, int64_t f_step, const REAL *stat, const REAL *keep, const REAL *scale,
                        REAL *loss, uint8_t *active, REAL *slope, double *sums) {
  REAL far = (REAL)plan->far, low = (REAL)plan->low, high = (REAL)plan->high, dual = (REAL)plan->dual;
  REAL cap = (REAL)plan->log_cap, limit = (REAL)plan->exp_cap, widest = (REAL)plan->widest;
  REAL fixed = (REAL)plan->ceiling, highs = 0, lows = 0, duals = 0, sx = 0, sxx = 0, lowest = far, highest = -far;
  double sw = 0, sww = 0, total = 0;
  int by_sign = plan->surrogate == MIN_CLIP, moving = isnan(plan->ceiling), weighs = plan->surrogate == WEIGHT;
#pragma omp simd reduction(+ : highs, lows, duals, sx, sxx, sw, sww, total) reduction(min : lowest) \
    reduction(max : highest)
  for (int64_t j = 0; j < n; j++) {
    REAL k = keep[j], x = k != 0 ? stat[j] : (REAL)0, s = scale[j];
    REAL a = k != 0 ? advantage[a_step * j] : (REAL)0;
    REAL lower = (by_sign && !(a < 0) ? -far : low) * s;
    REAL upper = (!by_sign || a > 0 ? high : a < 0 ? dual : far) * s;
    REAL clipped = x < lower ? lower : x > upper ? upper : x;
    REAL up = x > upper ? (REAL)1 : (REAL)0, down = x < lower ? (REAL)1 : (REAL)0;
    REAL worse = by_sign && a < 0 ? up : (REAL)0;
    REAL top = widest * s;
    top = top < cap ? cap : top > limit ? limit : top;
    top = moving ? top : fixed;
    REAL cut = x < top ? x : top, exponent = clipped < top ? clipped : top;
    REAL w = k * EXP(cut), l = -a * EXP(exponent);
    l = k != 0 ? l : (REAL)0;
    REAL value = weighs ? (k != 0 ? l * logps[j] : (REAL)0) : l;
    highs += up - worse;
    duals += worse;
    lows += down;
    sx += cut;
    sxx += cut * cut;
    sw += (double)w;
    sww += (double)w * (double)w;
    REAL least = k != 0 ? cut : far, most = k != 0 ? cut : -far;
    lowest = least < lowest ? least : lowest;
    highest = most > highest ? most : highest;
    loss[j] = value;
    total += (double)(value * factor[f_step * j]);
    if (weighs) slope[j] = l;
    else active[j] = up + down == 0;
  }
  sums[HIGH] += highs;
  sums[LOW] += lows;
  sums[DUAL] += duals;
  sums[X] += sx;
  sums[XX] += sxx;
  sums[W] += sw;
  sums[WW] += sww;
  sums[LOSS] += total;
  if (lowest < sums[LOWEST]) sums[LOWEST] = lowest;
  if (highest > sums[HIGHEST]) sums[HIGHEST] = highest;
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
