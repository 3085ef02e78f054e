/* The streaming pass in C, for float and double; see native.py. The arithmetic is stream.py's, token by token:
   chunks of one sequence go through vector loops, with a serial prefix sum in double between them. Most chunks of a
   sequence that drifts slowly come near no bound, and skip positions, bounds and a second exponential. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { TOKEN, CUMULATIVE, PREFIX_MEAN, SEQUENCE, MIN_PREFIX, UNIT };
enum { TOKENS, SEQUENCES, USABLE, NONFINITE, SATURATED, HIGH, LOW, DUAL, X, XX, W, WW, D, DD, K3, LOWEST, HIGHEST,
       LOSS, N_SUMS };

typedef struct {
  int64_t ratio, by_sign, advantage_per_token; /* by_sign: the advantage says which bound binds */
  double low, high, dual, power, ceiling, widest, log_cap, exp_cap, saturation, far;
} Plan;

#define CHUNK 512
#define MARGIN (1 - 1e-6) /* of a power's rounding */
#define VECTOR _Pragma("omp simd")
#define ALWAYS __attribute__((always_inline))

/* One rounding where the machine has the instruction, else two; in the exponential only, whose last place is free. */
#ifdef __FP_FAST_FMAF
#define FMA(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

/* e^x to an ulp, for x up to 88, 0 below -87: 2^n times a polynomial on [-ln2/2, ln2/2] (Taylor's terms to the seventh). */
static inline float exp_float(float x) {
  float n = rintf(x * 1.44269504088896341f);
  float r = FMA(n, 2.12194440e-4f, FMA(n, -0.693359375f, x));
  float p = FMA(1.9841270e-4f, r, 1.3888889e-3f);
  p = FMA(p, r, 8.3333333e-3f);
  p = FMA(p, r, 4.1666667e-2f);
  p = FMA(p, r, 1.6666667e-1f);
  p = FMA(p, r, 0.5f);
  p = FMA(p * r, r, r) + 1.0f;
  union { uint32_t i; float f; } scale;
  scale.i = (uint32_t)((int32_t)n + 127) << 23;
  return x > -87.0f ? p * scale.f : 0.0f;
}

#define REAL float
#define NAME(f) f##_float
#define EXP exp_float
#define SQRT sqrtf
#define POW powf
#define ABS fabsf
#include "native_terms.c"
#include "native_pass.c"
#undef REAL
#undef NAME
#undef EXP
#undef SQRT
#undef POW
#undef ABS
#define REAL double
#define NAME(f) f##_double
#define EXP exp
#define SQRT sqrt
#define POW pow
#define ABS fabs
#include "native_terms.c"
#include "native_pass.c"
