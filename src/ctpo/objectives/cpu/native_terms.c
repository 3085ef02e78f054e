/* Included by native.c once for each type: from a chunk's statistic to what its tokens leave. */

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

/* Whether a chunk stays inside of the bounds at the position where they are closest to 0, and weighs little enough for
   float32's squares: then positions and bounds need not be known. Leaves 0 where a token does not count; sums. */
static int NAME(inside)(const Plan *plan, int64_t n, const REAL *keep, const NAME(Bases) *bases, int64_t step,
                       double closest, REAL *x, double *sums) {
  REAL far = (REAL)plan->far, sx = 0, sxx = 0, least = far, most = -far;
#pragma omp simd reduction(+ : sx, sxx) reduction(min : least) reduction(max : most)
  for (int64_t j = 0; j < n; j++) {
    REAL k = keep[j], value = k != 0 ? x[j] : (REAL)0;
    REAL down = k != 0 ? value : far, up = k != 0 ? value : -far;
    least = down < least ? down : least;
    most = up > most ? up : most;
    sx += value;
    sxx += value * value;
    x[j] = value;
  }
  REAL low = step ? (REAL)plan->low : bases->low[0], high = step ? (REAL)plan->high : bases->high[0];
  REAL top = isnan(plan->ceiling) ? (REAL)plan->log_cap : (REAL)plan->ceiling;
  if (step && (REAL)plan->dual < high) high = (REAL)plan->dual;
  if (least < low * closest || most > high * closest || most > top || most > 40) return 0;
  sums[X] += sx;
  sums[XX] += sxx;
  if (least < sums[LOWEST]) sums[LOWEST] = least;
  if (most > sums[HIGHEST]) sums[HIGHEST] = most;
  return 1;
}

/* Clip and truncate a chunk's statistic: exponents of the weights that count into `x`, of the losses into `exponent`,
   1 into `met` where a bound was met; counts and moments. `moving` is known when compiled. */
static inline ALWAYS void NAME(clip)(const Plan *plan, int64_t n, const REAL *keep, const REAL *scale,
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

/* Token losses of a stop-gradient weight; their sum. */
static REAL NAME(from_slopes)(int64_t n, const REAL *logps, const REAL *factor, const REAL *keep, NAME(Outputs) out) {
  REAL total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; j++) {
    REAL logp = keep[j] != 0 ? logps[j] : (REAL)0;
    out.loss[j] = out.slope[j] * logp;
    total += out.loss[j] * factor[j];
  }
  return total;
}

/* Token losses, slopes, gradient and sums of a chunk inside of the bounds. */
static void NAME(plain)(int64_t n, const REAL *logps, const REAL *advantage, const REAL *factor, const REAL *x,
                        const REAL *keep, NAME(Outputs) out, double *sums) {
  REAL unused[CHUNK], *grad = out.grad ? out.grad : unused, *slope = out.slope ? out.slope : out.loss;
  REAL sw = 0, sww = 0, total = 0;
#pragma omp simd reduction(+ : sw, sww, total)
  for (int64_t j = 0; j < n; j++) {
    REAL w = keep[j] * EXP(x[j]), l = keep[j] != 0 ? -advantage[j] * w : (REAL)0, g = l * factor[j];
    slope[j] = l;
    grad[j] = g;
    sw += w;
    sww += w * w;
    total += g;
  }
  sums[W] += sw;
  sums[WW] += sww;
  if (out.slope)
    total = NAME(from_slopes)(n, logps, factor, keep, out);
  else
    memset(out.active, 1, n);
  sums[LOSS] += total;
}

/* The same of any chunk. */
static void NAME(bounded)(const Plan *plan, int64_t n, const REAL *logps, const NAME(Bases) *bases, const REAL *factor,
                          REAL *x, const REAL *keep, const REAL *scale, NAME(Outputs) out, double *sums) {
  REAL exponent[CHUNK], met[CHUNK], total = 0;
  REAL unused[CHUNK], *grad = out.grad ? out.grad : unused, *slope = out.slope ? out.slope : out.loss;
  if (isnan(plan->ceiling))
    NAME(clip)(plan, n, keep, scale, bases, 1, x, exponent, met, sums);
  else
    NAME(clip)(plan, n, keep, scale, bases, 0, x, exponent, met, sums);
  NAME(weigh)(n, keep, x, sums);
  REAL constant = out.slope ? (REAL)0 : (REAL)1; /* a stop-gradient weight keeps its slope where it is clipped */
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; j++) {
    REAL l = keep[j] != 0 ? -bases->advantage[j] * EXP(exponent[j]) : (REAL)0, g = l * factor[j];
    slope[j] = l;
    grad[j] = met[j] * constant != 0 ? (REAL)0 : g;
    total += g;
  }
  if (out.slope) {
    total = NAME(from_slopes)(n, logps, factor, keep, out);
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) out.active[j] = met[j] == 0;
  }
  sums[LOSS] += total;
}
