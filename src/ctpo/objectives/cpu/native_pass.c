/* Included by native.c once for each type: from log-probs to a chunk's statistic, and the pass over the chunks. */

/* Token log ratios of a chunk, 0 where unusable; usable tokens as 0/1; sums of both. Returns the mask's tokens. */
static int64_t NAME(load)(const Plan *plan, int64_t n, const REAL *logps, const REAL *old, const uint8_t *mask, REAL *d,
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
  for (int64_t j = 0; j < n && usable < marked; j++)
    if (mask[j] && keep[j] == 0) sums[isfinite(logps[j]) && isfinite(old[j]) ? SATURATED : NONFINITE] += 1;
  return (int64_t)marked;
}

typedef struct { double c, least; int64_t t; } NAME(Carry);

/* Tokens so far. A product by 0x0101... adds up the bytes below each byte of a word. */
static void NAME(count)(int64_t n, const uint8_t *mask, int64_t t, REAL *count) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
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
  for (; j < n; j++) count[j] = (REAL)(t += mask[j]);
}

/* Running sums in double into `sum`. Four quarters run side by side, as one chain of additions waits for itself; what
   comes before a quarter is left in `before`. Returns the tokens of a quarter. */
static int64_t NAME(prefix)(int64_t n, const REAL *d, double *c, double *sum, double *before) {
  int64_t q = n / 4;
  double c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  for (int64_t j = 0; j < q; j++) {
    sum[j] = c0 += d[j];
    sum[j + q] = c1 += d[j + q];
    sum[j + 2 * q] = c2 += d[j + 2 * q];
    sum[j + 3 * q] = c3 += d[j + 3 * q];
  }
  before[0] = *c;
  before[1] = before[0] + c0;
  before[2] = before[1] + c1;
  before[3] = before[2] + c2;
  for (int64_t j = 4 * q; j < n; j++) sum[j] = c3 += d[j];
  *c = before[3] + c3;
  return q;
}

/* Token log ratios to the ratio's statistic, in place, NaN in a mean of nothing; `t` counts tokens, for a mean. */
static void NAME(accumulate)(const Plan *plan, int64_t n, const uint8_t *mask, REAL *x, const REAL *t, double fixed,
                             NAME(Carry) *carry) {
  double least = carry->least, sum[CHUNK], before[4];
  switch (plan->ratio) {
    case CUMULATIVE:
    case PREFIX_MEAN: {
      int64_t q = NAME(prefix)(n, x, &carry->c, sum, before);
      for (int64_t k = 0; k < 4; k++) {
        int64_t first = k * q, last = k < 3 ? first + q : n;
        if (plan->ratio == CUMULATIVE) {
          VECTOR for (int64_t j = first; j < last; j++) x[j] = (REAL)(sum[j] + before[k]);
        } else {
          VECTOR for (int64_t j = first; j < last; j++) x[j] = (REAL)((sum[j] + before[k]) / t[j]);
        }
      }
      break;
    }
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
  carry->least = least;
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
    NAME(Carry) carry = {0, plan->far, 0};
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
      int64_t tokens = NAME(load)(plan, n, logps + b, old + b, mask + b, x, keep, sums);
      if (plan->ratio == PREFIX_MEAN) NAME(count)(n, mask + b, carry.t, t);
      NAME(accumulate)(plan, n, mask + b, x, t, fixed, &carry);
      if (a_step) NAME(bases)(plan, n, advantage + b, 1, &bases);
      double nearest = (double)(carry.t + (plan->power < 0 ? tokens : 1)); /* where bounds are closest to 0 */
      double closest = MARGIN * pow(nearest, plan->power);
      if (NAME(inside)(plan, n, keep, &bases, a_step, closest, x, sums)) {
        NAME(plain)(n, logps + b, bases.advantage, f_kind == 2 ? factor + b : factors, x, keep, out, sums);
      } else {
        if (plan->power != 0 && plan->ratio != PREFIX_MEAN) NAME(count)(n, mask + b, carry.t, t);
        NAME(scale)(plan->power, n, t);
        NAME(bounded)(plan, n, logps + b, &bases, f_kind == 2 ? factor + b : factors, x, keep, t, out, sums);
      }
      for (int64_t j = 0; kept && j < n; j++) out.kept[j] = keep[j] != 0;
      carry.t += tokens;
    }
    sums[SEQUENCES] += sums[TOKENS] > before;
  }
}
