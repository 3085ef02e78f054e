/* The loss of one call, its gradient and its statistics, in one pass over the tokens.

   Python fills a `Call` and calls `ctpo_run_float` or `ctpo_run_double`. The arithmetic is written once, in
   native_sequence.h, and compiled for both types. The definition of every result is reference.py.

   Work is divided into tasks of whole sequences. The tasks depend on the batch alone, each adds up its own totals, and
   the totals are joined in order. So the results are the same, bit for bit, whatever the number of threads. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Which log ratios make up the log weight of a token. */
enum { TOKEN, CUMULATIVE, PREFIX_MEAN, SEQUENCE, SEQUENCE_MEAN, MIN_PREFIX, UNIT, DECAYED };
/* What a token's loss does with its weight. */
enum { MIN_CLIP, STOP_GRADIENT_WEIGHT, LINEAR };
/* What the sum of the token losses is divided by. */
enum { NOTHING, TOKENS, SEQUENCES };
/* What a run returns. */
enum { DONE, BAD_SEGMENTS, NO_MEMORY };

/* One call. The fields and their order are those of `Call` in native.py. Pointers may be NULL where that is said. */
typedef struct {
  /* The objective. Bounds are log ratios at the first token; at token t they are multiplied by t^power. */
  int64_t ratio, surrogate, through, divisor;
  double decay;           /* of a running sum that forgets, per sampled token */
  double low, high, dual, power;
  double widest;          /* the largest finite one of `high` and `dual`, 0 if there is none */
  double log_cap, exp_cap; /* ceilings of a log weight: outside the bounds, and always */
  double saturation;      /* a larger |log ratio| of one token makes it unusable */
  double far;             /* stands for an absent bound */
  double positive_logp;   /* a value above this is no log-prob */
  double norm_length, length_power;
  /* The batch. */
  int64_t tokens, sequences;
  int64_t row_length;     /* tokens of every sequence, where `edges` is NULL */
  const int64_t *edges;   /* sequences + 1 numbers: where each sequence begins, and the end of the last one */
  const int64_t *numbers; /* which advantage and weight belongs to each sequence; NULL: that of the same place */
  int64_t values;         /* how many values per sequence there are */
  const void *logps, *old_logps;
  const uint8_t *response;  /* not 0 on tokens that the model sampled */
  const uint8_t *rejected;  /* not 0 on tokens that are left out of the loss; may be NULL */
  const void *advantages, *weights; /* weights may be NULL */
  int64_t advantage_per_token, weight_per_token;
  double num_tokens, num_sequences; /* denominators of the loss; below 0: counted here */
  /* What the gradient is of: loss_gradient × loss + Σ token_gradient × token_loss. */
  double loss_gradient;
  const void *token_gradient; /* may be NULL */
  int64_t threads;
  /* Results per token; either may be NULL. */
  void *token_loss, *gradient;
} Call;

/* Sums over tokens, which stats.py makes the statistics from. The fields are those of SUMS there, in the same order,
   and two more. x is a token's log weight after truncation, d its log ratio. */
typedef struct {
  double tokens, sequences;                       /* under the response mask */
  double usable, nonfinite, saturated, positive;  /* kinds of tokens */
  double high, low, dual;                         /* tokens beyond each bound */
  double offset, offset_squared;                  /* Σ (x − origin), which is 0, and Σ (x − origin)² */
  double weight, weight_squared;                  /* Σ w and Σ w² with w = e^(x − level) */
  double d, d_squared, k3;                        /* Σ d, Σ d² and Σ (e^d − 1 − d) */
  double origin, lowest, highest;                 /* mean and extremes of x */
  double level;
  double loss;
} Totals;

#define CHUNK 512 /* tokens that pass through all the loops while they are in the first cache */
#define VECTOR _Pragma("omp simd")

/* Set totals to those of no tokens. */
static void clear(const Call *call, Totals *totals) {
  memset(totals, 0, sizeof *totals);
  totals->lowest = call->far;
  totals->highest = totals->level = -call->far;
}

/* The mean and the squares of two sets of numbers together, from those of each. */
static void join_moments(Totals *into, double n, double mean, double squares) {
  double m = into->usable, all = m + n;
  if (n == 0) return;
  double apart = mean - into->origin;
  into->origin += apart * (n / all);
  into->offset_squared += squares + apart * apart * (m * n / all);
}

/* Add sums of weights whose level may be another. The higher level stays, so that no sum overflows. */
static void join_weights(Totals *into, double weight, double squares, double level) {
  if (level > into->level) {
    double down = exp(into->level - level);
    into->weight *= down;
    into->weight_squared *= down * down;
    into->level = level;
  } else if (level < into->level) {
    double down = exp(level - into->level);
    weight *= down;
    squares *= down * down;
  }
  into->weight += weight;
  into->weight_squared += squares;
}

/* Add the totals of one part of the batch to those of the parts before it. */
static void join(Totals *into, const Totals *part) {
  join_moments(into, part->usable, part->origin, part->offset_squared); /* before the counts are added */
  into->loss += part->loss;
  into->tokens += part->tokens;
  into->sequences += part->sequences;
  into->usable += part->usable;
  into->nonfinite += part->nonfinite;
  into->saturated += part->saturated;
  into->positive += part->positive;
  into->high += part->high;
  into->low += part->low;
  into->dual += part->dual;
  into->d += part->d;
  into->d_squared += part->d_squared;
  into->k3 += part->k3;
  if (part->lowest < into->lowest) into->lowest = part->lowest;
  if (part->highest > into->highest) into->highest = part->highest;
  join_weights(into, part->weight, part->weight_squared, part->level);
}

/* The first token of a sequence; of the number after the last sequence, the end of the batch. */
static int64_t start_of(const Call *call, int64_t sequence) {
  return call->edges ? call->edges[sequence] : sequence * call->row_length;
}

/* How many of n tokens count in the loss: sampled by the model, and not rejected. */
static int64_t count_tokens(int64_t n, const uint8_t *response, const uint8_t *rejected) {
  int64_t total = 0;
  while (n > 0) {
    int64_t part = n < 32768 ? n : 32768; /* so that sixteen bits hold the count of a part */
    uint16_t count = 0;
    if (rejected) {
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < part; j++) count += (uint16_t)((response[j] != 0) & (rejected[j] == 0));
      rejected += part;
    } else {
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < part; j++) count += (uint16_t)(response[j] != 0);
    }
    total += count;
    response += part;
    n -= part;
  }
  return total;
}

/* The factor of the token losses of one sequence. */
static double factor_of(const Call *call, int64_t start, int64_t length) {
  double factor = 1;
  if (call->divisor == TOKENS) factor = 1 / call->num_tokens;
  if (call->divisor == SEQUENCES) factor = 1 / call->num_sequences / call->norm_length;
  if (call->length_power != 0) {
    int64_t count = count_tokens(length, call->response + start, call->rejected ? call->rejected + start : NULL);
    factor *= pow(count > 1 ? (double)count : 1.0, call->length_power);
  }
  return factor;
}

/* One rounding where the machine has the instruction, else two; in the exponential only, whose last place is free.
   Compilers name the instruction differently: gcc by the first word, clang on x86-64 by the second alone. */
#if defined(__FP_FAST_FMAF) || defined(__FMA__)
#define FMA(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

#define SMALL 0.3465f /* less than ln(2)/2 */

/* For |r| up to ln(2)/2: (e^r − 1 − r) / r², from Taylor's terms to the seventh. */
static inline float exp_tail(float r) {
  float p = FMA(1.9841270e-4f, r, 1.3888889e-3f);
  p = FMA(p, r, 8.3333333e-3f);
  p = FMA(p, r, 4.1666667e-2f);
  p = FMA(p, r, 1.6666667e-1f);
  return FMA(p, r, 0.5f);
}

/* x = n ln(2) + r, with a whole n and |r| up to ln(2)/2. Returns n. */
static inline float split_exponent(float x, float *r) {
  float n = rintf(x * 1.44269504088896341f);
  *r = FMA(n, 2.12194440e-4f, FMA(n, -0.693359375f, x));
  return n;
}

/* 2^n for a whole n from −126 to 127. */
static inline float power_of_two(float n) {
  union { uint32_t i; float f; } power;
  power.i = (uint32_t)((int32_t)n + 127) << 23;
  return power.f;
}

/* e^x to one unit in the last place, for x up to 88; 0 below −87. */
static inline float exp_float(float x) {
  float r, n = split_exponent(x > -88.0f ? x : -88.0f, &r), p = exp_tail(r);
  p = FMA(p * r, r, r) + 1.0f;
  return x > -87.0f ? p * power_of_two(n) : 0.0f;
}

/* e^x − 1 − x for |x| up to 20, without the cancellation near 0. */
static inline float excess_float(float x) {
  float r, n = split_exponent(x, &r), square = exp_tail(r) * r * r;
  return n == 0.0f ? square : ((square + r) + 1.0f) * power_of_two(n) - 1.0f - x;
}

/* The same for |x| up to SMALL. */
static inline float small_excess_float(float x) { return exp_tail(x) * x * x; }

/* e^x − 1 − x in double. */
static inline double excess_double(double x) { return expm1(x) - x; }

#define REAL float
#define NAME(f) f##_float
#define EXP exp_float
#define EXCESS excess_float
#define SMALL_EXCESS small_excess_float
#define SQRT sqrtf
#define POW powf
#define ABS fabsf
#include "native_sequence.h"
#undef REAL
#undef NAME
#undef EXP
#undef EXCESS
#undef SMALL_EXCESS
#undef SQRT
#undef POW
#undef ABS
#define REAL double
#define NAME(f) f##_double
#define EXP exp
#define EXCESS excess_double
#define SMALL_EXCESS excess_double
#define SQRT sqrt
#define POW pow
#define ABS fabs
#include "native_sequence.h"

/* Sequences first up to, but not including, last. */
typedef struct {
  int64_t first, last;
  Totals totals;
} Task;

typedef void Work(const Call *, Task *);

/* Tasks that several threads take one by one. */
typedef struct {
  const Call *call;
  Work *work;
  Task *tasks;
  int64_t count, next;
} Queue;

/* Do tasks until none is left; what each thread runs. */
static void *take_tasks(void *argument) {
  Queue *queue = argument;
  for (;;) {
    int64_t i = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
    if (i >= queue->count) return NULL;
    queue->work(queue->call, &queue->tasks[i]);
  }
}

#define TASK_TOKENS 8192   /* a task ends with the sequence that brings it to so many tokens */
#define THREAD_TOKENS 32768 /* the fewest tokens for which one more thread is started */
#define MOST_THREADS 64

/* Do all tasks, on as many threads as are allowed and worth starting. The threads end before this returns. */
static void do_tasks(const Call *call, Work *work, Task *tasks, int64_t count) {
  Queue queue = {call, work, tasks, count, 0};
  pthread_t threads[MOST_THREADS];
  int64_t more = call->tokens / THREAD_TOKENS < call->threads ? call->tokens / THREAD_TOKENS : call->threads;
  if (more > count) more = count;
  if (more > MOST_THREADS) more = MOST_THREADS;
  int started = 0;
  while (started < more - 1 && pthread_create(&threads[started], NULL, take_tasks, &queue) == 0) started++;
  take_tasks(&queue);
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

/* Divide the sequences into tasks of about as many tokens. Returns the number of tasks. */
static int64_t divide(const Call *call, Task *tasks) {
  int64_t count = 0, first = 0;
  for (int64_t i = 0; i < call->sequences; i++) {
    if (i + 1 < call->sequences && start_of(call, i + 1) - start_of(call, first) < TASK_TOKENS) continue;
    tasks[count].first = first;
    tasks[count].last = i + 1;
    clear(call, &tasks[count++].totals);
    first = i + 1;
  }
  return count;
}

/* Count the tokens and sequences that the loss may be divided by. */
static void count_task(const Call *call, Task *task) {
  for (int64_t i = task->first; i < task->last; i++) {
    int64_t start = start_of(call, i), length = start_of(call, i + 1) - start;
    int64_t count = count_tokens(length, call->response + start, call->rejected ? call->rejected + start : NULL);
    task->totals.tokens += (double)count;
    task->totals.sequences += count > 0;
  }
}

static void float_task(const Call *call, Task *task) {
  for (int64_t i = task->first; i < task->last; i++) sequence_float(call, i, &task->totals);
}

static void double_task(const Call *call, Task *task) {
  for (int64_t i = task->first; i < task->last; i++) sequence_double(call, i, &task->totals);
}

/* Whether the edges rise from 0 to the number of tokens, and every sequence with a token has a value. */
static int edges_are_right(const Call *call) {
  if (!call->edges) return 1;
  if (call->edges[0] != 0 || call->edges[call->sequences] != call->tokens) return 0;
  for (int64_t i = 0; i < call->sequences; i++) {
    if (call->edges[i] > call->edges[i + 1]) return 0;
    if (call->edges[i] < call->edges[i + 1] && (call->numbers ? call->numbers[i] : i) >= call->values) return 0;
  }
  return 1;
}

/* Check the segments, count what the loss is divided by, and do all tasks. */
static int run(Call *call, Work *work, Totals *totals) {
  if (!edges_are_right(call)) return BAD_SEGMENTS;
  Task *tasks = malloc(sizeof(Task) * (size_t)(call->tokens / TASK_TOKENS + 2));
  if (!tasks) return NO_MEMORY;
  int64_t count = divide(call, tasks);
  if ((call->divisor == TOKENS && call->num_tokens < 0) || (call->divisor == SEQUENCES && call->num_sequences < 0)) {
    double counted_tokens = 0, counted_sequences = 0;
    do_tasks(call, count_task, tasks, count);
    for (int64_t i = 0; i < count; i++) {
      counted_tokens += tasks[i].totals.tokens;
      counted_sequences += tasks[i].totals.sequences;
      tasks[i].totals.tokens = tasks[i].totals.sequences = 0;
    }
    call->num_tokens = counted_tokens > 1 ? counted_tokens : 1;
    call->num_sequences = counted_sequences > 1 ? counted_sequences : 1;
  }
  do_tasks(call, work, tasks, count);
  clear(call, totals);
  for (int64_t i = 0; i < count; i++) join(totals, &tasks[i].totals);
  free(tasks);
  return DONE;
}

int ctpo_run_float(Call *call, Totals *totals) { return run(call, float_task, totals); }

int ctpo_run_double(Call *call, Totals *totals) { return run(call, double_task, totals); }

/* Where each segment of n tokens begins, and its number, from the number of each token's segment.

   Writes `edges` (one more than there are segments) and `numbers` up to `capacity` segments, and counts on beyond it.
   Returns the number of segments that hold tokens, or −1 if an id is below 0 or smaller than the one before. */
int64_t ctpo_find_segments(const int64_t *ids, int64_t n, int64_t capacity, int64_t *edges, int64_t *numbers) {
  int64_t count = 0;
  if (n > 0 && ids[0] < 0) return -1;
  for (int64_t block = 0; block < n; block += 64) {
    int64_t end = block + 64 < n ? block + 64 : n;
    int changed = block == 0;
    for (int64_t j = block > 0 ? block : 1; j < end; j++) changed |= ids[j] != ids[j - 1];
    for (int64_t j = block; changed && j < end; j++) {
      if (j > 0 && ids[j] == ids[j - 1]) continue;
      if (j > 0 && ids[j] < ids[j - 1]) return -1;
      if (count < capacity) {
        edges[count] = j;
        numbers[count] = ids[j];
      }
      count++;
    }
  }
  if (count <= capacity) edges[count] = n;
  return count;
}

/* Which sources and flags this library was compiled from; the compiler's command defines it. */
#ifndef CTPO_SOURCES
#define CTPO_SOURCES ""
#endif
const char *ctpo_sources(void) { return CTPO_SOURCES; }
