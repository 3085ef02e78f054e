/* The pass over one sequence. native.c includes this file once for float and once for double.

   A sequence goes through in chunks, and each chunk through a handful of loops that the compiler turns into vector
   instructions. Only the running sum of the log ratios is serial. Most chunks of a policy that drifts slowly come near
   no bound; for them positions, bounds and a second exponential are spared. */

/* One chunk of tokens. An entry of `keep` is 1 where the token's log-probs count, else 0; so is one of `frozen` where
   a bound took the token's gradient. */
typedef struct {
  uint8_t response[CHUNK];
  REAL keep[CHUNK], frozen[CHUNK];
  REAL log_weight[CHUNK], weight[CHUNK];   /* of the statistics: truncated, not clipped */
  REAL exponent[CHUNK];                    /* of the loss: clipped, too */
  REAL position[CHUNK];                    /* 1-based count of sampled tokens; later its power */
  REAL advantage[CHUNK], low[CHUNK], high[CHUNK]; /* the bounds are those that bind for the advantage's sign */
  REAL upstream[CHUNK];                    /* derivative of the objective by the token's loss */
  REAL unused[CHUNK];
} NAME(Chunk);

/* What one sequence carries from chunk to chunk. */
typedef struct {
  int64_t tokens;       /* sampled ones so far */
  double sum, smallest; /* of their log ratios */
  double whole;         /* the statistic of all tokens, where the ratio has one for the sequence */
} NAME(State);

static const REAL NAME(zeros)[CHUNK];

/* Fill response, keep and the log ratios (into log_weight; 0 where unusable). Returns the number of sampled tokens. */
static int64_t NAME(load)(const Call *call, int64_t at, int64_t n, NAME(Chunk) *chunk, Totals *totals,
                          int64_t *usable_tokens) {
  const REAL *logps = (const REAL *)call->logps + at, *old = (const REAL *)call->old_logps + at;
  const uint8_t *response = call->response + at;
  REAL bound = (REAL)call->saturation, most = (REAL)call->positive_logp;
  REAL d = 0, dd = 0, k3 = 0, sampled = 0, usable = 0, positive = 0, largest = 0;
  VECTOR for (int64_t j = 0; j < n; j++) chunk->response[j] = response[j] != 0;
  VECTOR for (int64_t j = 0; j < n; j++) chunk->keep[j] = (REAL)chunk->response[j];
#pragma omp simd reduction(+ : d, dd, sampled, usable, positive) reduction(max : largest)
  for (int64_t j = 0; j < n; j++) {
    REAL difference = logps[j] - old[j], mask = chunk->keep[j];
    REAL keep = ABS(difference) <= bound ? mask : (REAL)0; /* 0 for NaN */
    REAL value = keep != 0 ? difference : (REAL)0;
    chunk->log_weight[j] = value;
    chunk->keep[j] = keep;
    sampled += mask;
    usable += keep;
    positive += (logps[j] > most) | (old[j] > most) ? mask : (REAL)0;
    d += value;
    dd += value * value;
    largest = ABS(value) > largest ? ABS(value) : largest;
  }
  if (largest < SMALL) {
#pragma omp simd reduction(+ : k3)
    for (int64_t j = 0; j < n; j++) k3 += SMALL_EXCESS(chunk->log_weight[j]);
  } else {
#pragma omp simd reduction(+ : k3)
    for (int64_t j = 0; j < n; j++) k3 += EXCESS(chunk->log_weight[j]);
  }
  for (int64_t j = 0; j < n && usable < sampled; j++) {
    if (!chunk->response[j] || chunk->keep[j] != 0) continue;
    if (isfinite(logps[j]) && isfinite(old[j]))
      totals->saturated += 1;
    else
      totals->nonfinite += 1;
  }
  totals->tokens += sampled;
  totals->positive += positive;
  totals->d += d;
  totals->d_squared += dd;
  totals->k3 += k3;
  *usable_tokens = (int64_t)usable;
  return (int64_t)sampled;
}

/* Fill the positions, given the number of tokens before the chunk. A product with 0x0101… adds up the bytes below
   each byte of a word. */
static void NAME(count_positions)(int64_t n, int64_t before, NAME(Chunk) *chunk) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    uint8_t running[8];
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t word;
    memcpy(&word, chunk->response + j, 8);
    word *= UINT64_C(0x0101010101010101);
    memcpy(running, &word, 8);
#else
    running[0] = chunk->response[j];
    for (int k = 1; k < 8; k++) running[k] = running[k - 1] + chunk->response[j + k];
#endif
    REAL so_far = (REAL)before;
    VECTOR for (int k = 0; k < 8; k++) chunk->position[j + k] = (REAL)running[k] + so_far;
    before += running[7];
  }
  for (; j < n; j++) chunk->position[j] = (REAL)(before += chunk->response[j]);
}

/* Log ratios to their running sums, or running means where `mean`; in double. Four quarters run side by side, because
   one chain of additions would wait for itself. */
static void NAME(running_sums)(int64_t n, int mean, NAME(State) *state, NAME(Chunk) *chunk) {
  REAL *x = chunk->log_weight;
  int64_t q = n / 4;
  double sum[CHUNK], c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  for (int64_t j = 0; j < q; j++) {
    sum[j] = c0 += x[j];
    sum[j + q] = c1 += x[j + q];
    sum[j + 2 * q] = c2 += x[j + 2 * q];
    sum[j + 3 * q] = c3 += x[j + 3 * q];
  }
  for (int64_t j = 4 * q; j < n; j++) sum[j] = c3 += x[j];
  double before[4] = {state->sum, state->sum + c0, state->sum + c0 + c1, state->sum + c0 + c1 + c2};
  for (int k = 0; k < 4; k++) {
    int64_t first = k * q, last = k < 3 ? first + q : n;
    double so_far = before[k];
    if (mean) { /* NaN before the first token, where nothing counts */
      VECTOR for (int64_t j = first; j < last; j++) x[j] = (REAL)((sum[j] + so_far) / chunk->position[j]);
    } else {
      VECTOR for (int64_t j = first; j < last; j++) x[j] = (REAL)(sum[j] + so_far);
    }
  }
  state->sum = before[3] + c3;
}

/* Log ratios to their running sums that forget; in double, in four quarters as above. Every token also needs the
   share that is left of what was before its quarter. */
static void NAME(decayed_sums)(double decay, int64_t n, NAME(State) *state, NAME(Chunk) *chunk) {
  REAL *x = chunk->log_weight;
  int64_t q = n / 4;
  double step[CHUNK], sum[CHUNK], share[CHUNK], c[4] = {0, 0, 0, 0}, left[4] = {1, 1, 1, 1}, before = state->sum;
  VECTOR for (int64_t j = 0; j < n; j++) step[j] = chunk->response[j] ? decay : 1.0;
  for (int64_t j = 0; j < q; j++) {
    for (int k = 0; k < 4; k++) {
      int64_t i = j + k * q;
      sum[i] = c[k] = step[i] * c[k] + x[i];
      share[i] = left[k] *= step[i];
    }
  }
  for (int64_t j = 4 * q; j < n; j++) {
    sum[j] = c[3] = step[j] * c[3] + x[j];
    share[j] = left[3] *= step[j];
  }
  for (int k = 0; k < 4; k++) {
    int64_t first = k * q, last = k < 3 ? first + q : n;
    VECTOR for (int64_t j = first; j < last; j++) x[j] = (REAL)(sum[j] + share[j] * before);
    before = c[k] + left[k] * before;
  }
  state->sum = before;
}

/* Log ratios to the ratio's statistic: the log weight before any bound. */
static void NAME(statistic)(const Call *call, int64_t n, NAME(State) *state, NAME(Chunk) *chunk) {
  REAL *x = chunk->log_weight;
  switch (call->ratio) {
    case CUMULATIVE:
    case PREFIX_MEAN:
      NAME(running_sums)(n, call->ratio == PREFIX_MEAN, state, chunk);
      break;
    case DECAYED:
      NAME(decayed_sums)(call->decay, n, state, chunk);
      break;
    case SEQUENCE:
    case SEQUENCE_MEAN:
      VECTOR for (int64_t j = 0; j < n; j++) x[j] = (REAL)state->whole;
      break;
    case MIN_PREFIX:
      for (int64_t j = 0; j < n; j++) {
        REAL d = x[j];
        x[j] = state->smallest < call->far ? (REAL)(d + state->smallest) : d;
        if (chunk->response[j] && d < state->smallest) state->smallest = d;
      }
      break;
    case UNIT:
      memset(x, 0, (size_t)n * sizeof(REAL));
  }
}

/* Sum or mean of the log ratios of a whole sequence. */
static double NAME(whole_statistic)(const Call *call, int64_t start, int64_t length) {
  const REAL *logps = (const REAL *)call->logps + start, *old = (const REAL *)call->old_logps + start;
  const uint8_t *response = call->response + start;
  REAL bound = (REAL)call->saturation;
  double sum = 0, count = 0;
#pragma omp simd reduction(+ : sum, count)
  for (int64_t j = 0; j < length; j++) {
    REAL difference = logps[j] - old[j];
    REAL value = ABS(difference) <= bound ? difference : (REAL)0;
    sum += response[j] != 0 ? (double)value : 0.0;
    count += response[j] != 0 ? 1.0 : 0.0;
  }
  return call->ratio == SEQUENCE ? sum : sum / (count > 1 ? count : 1);
}

/* Fill advantages, and the bounds at the first token that bind for their sign. */
static void NAME(load_advantages)(const Call *call, int64_t at, int64_t n, int64_t number, NAME(Chunk) *chunk) {
  const REAL *advantages = call->advantages, *weights = call->weights;
  const uint8_t *rejected = call->rejected ? call->rejected + at : NULL;
  REAL far = (REAL)call->far, low = (REAL)call->low, high = (REAL)call->high, dual = (REAL)call->dual;
  int by_sign = call->surrogate == MIN_CLIP;
  if (call->advantage_per_token) {
    memcpy(chunk->advantage, advantages + at, (size_t)n * sizeof(REAL));
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->advantage[j] = advantages[number];
  }
  if (weights && call->weight_per_token) {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->advantage[j] *= weights[at + j];
  } else if (weights) {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->advantage[j] *= weights[number];
  }
  if (rejected) {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->advantage[j] = rejected[j] ? (REAL)0 : chunk->advantage[j];
  }
  VECTOR for (int64_t j = 0; j < n; j++) {
    REAL advantage = chunk->advantage[j], above = advantage < 0 ? dual : far;
    chunk->low[j] = !by_sign || advantage < 0 ? low : -far;
    chunk->high[j] = !by_sign || advantage > 0 ? high : above;
  }
}

/* Fill the derivatives by the token losses. */
static void NAME(load_upstream)(const Call *call, int64_t at, int64_t n, double factor, NAME(Chunk) *chunk) {
  REAL of_loss = (REAL)(factor * call->loss_gradient);
  const REAL *of_tokens = call->token_gradient;
  if (of_tokens) {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->upstream[j] = of_loss + of_tokens[at + j];
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) chunk->upstream[j] = of_loss;
  }
}

/* The statistic is set to 0 where a token does not count; 0 lies within every region. Returns the extremes of the
   others. */
static void NAME(extremes)(const Call *call, int64_t n, NAME(Chunk) *chunk, REAL *lowest, REAL *highest) {
  REAL far = (REAL)call->far, least = far, most = -far;
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t j = 0; j < n; j++) {
    REAL keep = chunk->keep[j], value = keep != 0 ? chunk->log_weight[j] : (REAL)0;
    REAL down = keep != 0 ? value : far, up = keep != 0 ? value : -far;
    least = down < least ? down : least;
    most = up > most ? up : most;
    chunk->log_weight[j] = value;
  }
  *lowest = least;
  *highest = most;
}

/* Positions to the scale of the bounds. */
static void NAME(scale_bounds)(double power, int64_t n, NAME(Chunk) *chunk) {
  REAL *t = chunk->position;
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

/* Clip and truncate: fills exponent and frozen, truncates log_weight, and counts the tokens beyond each bound.
   `ceiling` is that of the log weights, or NaN where it rises with the position. */
static void NAME(clip)(const Call *call, int64_t n, REAL ceiling, NAME(Chunk) *chunk, Totals *totals) {
  REAL cap = (REAL)call->log_cap, limit = (REAL)call->exp_cap, widest = (REAL)call->widest;
  REAL by_sign = call->surrogate == MIN_CLIP ? (REAL)1 : (REAL)0;
  REAL freezes = call->surrogate == STOP_GRADIENT_WEIGHT ? (REAL)0 : (REAL)1;
  REAL above = 0, below = 0, above_dual = 0;
  REAL *top = chunk->unused;
  if (isnan(ceiling)) {
    VECTOR for (int64_t j = 0; j < n; j++) {
      REAL reach = widest * chunk->position[j];
      reach = reach > limit ? limit : reach;
      top[j] = reach < cap ? cap : reach;
    }
  } else {
    VECTOR for (int64_t j = 0; j < n; j++) top[j] = ceiling;
  }
#pragma omp simd reduction(+ : above, below, above_dual)
  for (int64_t j = 0; j < n; j++) {
    REAL value = chunk->log_weight[j], scale = chunk->position[j];
    REAL low = chunk->low[j] * scale, high = chunk->high[j] * scale;
    REAL up = value > high ? (REAL)1 : (REAL)0, down = value < low ? (REAL)1 : (REAL)0;
    REAL clipped = value > high ? high : value;
    clipped = clipped < low ? low : clipped;
    above += up;
    above_dual += chunk->advantage[j] < 0 ? up * by_sign : (REAL)0;
    below += down;
    chunk->frozen[j] = (up + down) * freezes;
    chunk->log_weight[j] = value < top[j] ? value : top[j];
    chunk->exponent[j] = clipped < top[j] ? clipped : top[j];
  }
  totals->high += above - above_dual;
  totals->dual += above_dual;
  totals->low += below;
}

/* Fill the weights, and add them and the moments of their logarithms to the totals. */
static void NAME(weigh)(int64_t n, int64_t usable, REAL highest, NAME(Chunk) *chunk, Totals *totals) {
  const REAL *x = chunk->log_weight, *keep = chunk->keep;
  REAL sum = 0, squares = 0, from_first = 0, from_first_squares = 0;
  int64_t j0 = 0;
  while (j0 < n - 1 && keep[j0] == 0) j0++;
  REAL first = x[j0]; /* differences from one of the values keep their digits where all are far from 0 */
#pragma omp simd reduction(+ : sum, squares, from_first, from_first_squares)
  for (int64_t j = 0; j < n; j++) {
    REAL weight = keep[j] * EXP(x[j]), difference = keep[j] * (x[j] - first);
    chunk->weight[j] = weight;
    sum += weight;
    squares += weight * weight;
    from_first += difference;
    from_first_squares += difference * difference;
  }
  double count = (double)usable, mean = from_first / (count > 1 ? count : 1);
  double spread = from_first_squares - mean * from_first;
  join_moments(totals, count, first + mean, spread > 0 ? spread : 0);
  totals->usable += count;
  if (usable == 0) return;
  double level = 0;
  if (!(squares > (REAL)1e-30 && squares < (REAL)1e36)) { /* squares beyond the range of float */
    sum = squares = 0;
    level = (double)highest;
#pragma omp simd reduction(+ : sum, squares)
    for (int64_t j = 0; j < n; j++) {
      REAL weight = keep[j] * EXP(x[j] - highest);
      sum += weight;
      squares += weight * weight;
    }
  }
  join_weights(totals, sum, squares, level);
}

/* Token losses and the gradient from weights that are clipped already. */
static void NAME(losses)(const Call *call, int64_t at, int64_t n, const REAL *weight, const REAL *frozen,
                         NAME(Chunk) *chunk, Totals *totals) {
  const REAL *logps = (const REAL *)call->logps + at, *keep = chunk->keep, *upstream = chunk->upstream;
  REAL *loss = call->token_loss ? (REAL *)call->token_loss + at : chunk->unused, total = 0;
  REAL *gradient = call->gradient ? (REAL *)call->gradient + at : chunk->exponent; /* read by now, or never */
  if (call->surrogate == STOP_GRADIENT_WEIGHT) {
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) {
      REAL slope = -chunk->advantage[j] * weight[j], value = keep[j] != 0 ? slope * logps[j] : (REAL)0;
      loss[j] = value;
      gradient[j] = keep[j] != 0 ? slope * upstream[j] : (REAL)0;
      total += value * upstream[j];
    }
  } else {
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) {
      REAL value = keep[j] != 0 ? -chunk->advantage[j] * weight[j] : (REAL)0, product = value * upstream[j];
      loss[j] = value;
      gradient[j] = keep[j] > frozen[j] ? product : (REAL)0;
      total += product;
    }
  }
  totals->loss += total;
}

/* The gradient by the statistics to the gradient by the log-probs, in place: the transpose of the ratio's linear map.
   Runs from the last token to the first, as a token's log ratio enters the statistics of later tokens. */
static void NAME(through)(const Call *call, int64_t start, int64_t length, int64_t tokens) {
  const REAL *logps = (const REAL *)call->logps + start, *old = (const REAL *)call->old_logps + start;
  const uint8_t *response = call->response + start;
  REAL *gradient = (REAL *)call->gradient + start, bound = (REAL)call->saturation;
  int whole = call->ratio == SEQUENCE || call->ratio == SEQUENCE_MEAN;
  double sum = 0, position = (double)tokens;
  if (whole) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < length; j++) sum += (double)gradient[j];
    if (call->ratio == SEQUENCE_MEAN) sum /= tokens > 1 ? (double)tokens : 1;
    VECTOR for (int64_t j = 0; j < length; j++) {
      int usable = (response[j] != 0) & (ABS(logps[j] - old[j]) <= bound);
      gradient[j] = usable ? (REAL)sum : (REAL)0;
    }
    return;
  }
  for (int64_t j = length - 1; j >= 0; j--) {
    if (response[j] == 0) continue;
    sum += call->ratio == PREFIX_MEAN ? gradient[j] / position : gradient[j];
    position -= 1;
    gradient[j] = ABS(logps[j] - old[j]) <= bound ? (REAL)sum : (REAL)0;
  }
}

/* Everything of one sequence. */
static void NAME(sequence)(const Call *call, int64_t i, Totals *totals) {
  int64_t start = start_of(call, i), end = start_of(call, i + 1), length = end - start;
  int64_t number = call->numbers ? call->numbers[i] : i;
  int per_token = call->advantage_per_token || call->rejected || (call->weights && call->weight_per_token);
  NAME(State) state = {0, 0, call->far, 0};
  NAME(Chunk) chunk;
  if (length == 0) return;
  if (call->ratio == SEQUENCE || call->ratio == SEQUENCE_MEAN) state.whole = NAME(whole_statistic)(call, start, length);
  double factor = factor_of(call, start, length);
  int64_t first_chunk = length < CHUNK ? length : CHUNK;
  if (!per_token) NAME(load_advantages)(call, start, first_chunk, number, &chunk);
  if (!call->token_gradient) NAME(load_upstream)(call, start, first_chunk, factor, &chunk);
  /* The ceiling rises with the position only where a bound does so beyond the cap. */
  double growth = call->power != 0 ? pow((double)length, call->power) : 1;
  double reach = call->widest * (growth > 1 ? growth : 1);
  double higher = call->widest > call->log_cap ? call->widest : call->log_cap;
  double ceiling = higher < call->exp_cap ? higher : call->exp_cap;
  if (call->power != 0 && reach > call->log_cap) ceiling = NAN;
  for (int64_t at = start; at < end; at += CHUNK) {
    int64_t n = end - at < CHUNK ? end - at : CHUNK, usable;
    int64_t tokens = NAME(load)(call, at, n, &chunk, totals, &usable);
    if (tokens == 0) {
      if (call->token_loss) memset((REAL *)call->token_loss + at, 0, (size_t)n * sizeof(REAL));
      if (call->gradient) memset((REAL *)call->gradient + at, 0, (size_t)n * sizeof(REAL));
      continue;
    }
    if (call->ratio == PREFIX_MEAN) NAME(count_positions)(n, state.tokens, &chunk);
    NAME(statistic)(call, n, &state, &chunk);
    if (per_token) NAME(load_advantages)(call, at, n, number, &chunk);
    if (call->token_gradient) NAME(load_upstream)(call, at, n, factor, &chunk);
    REAL lowest, highest;
    NAME(extremes)(call, n, &chunk, &lowest, &highest);
    /* The bounds are closest to 0 at the chunk's first token, or at its last where they shrink. The margin covers the
       rounding of a power. */
    double closest = (double)(state.tokens + (call->power < 0 ? tokens : 1));
    closest = call->power != 0 ? pow(closest, call->power) * (1 - 1e-6) : 1;
    double low = per_token ? call->low : chunk.low[0], high = per_token ? call->high : chunk.high[0];
    if (per_token && call->dual < high) high = call->dual;
    double top = isnan(ceiling) ? call->log_cap : ceiling;
    int inside = lowest >= low * closest && highest <= high * closest && highest <= top;
    if (!inside) {
      if (call->power != 0 && call->ratio != PREFIX_MEAN) NAME(count_positions)(n, state.tokens, &chunk);
      NAME(scale_bounds)(call->power, n, &chunk);
      NAME(clip)(call, n, (REAL)ceiling, &chunk, totals);
      NAME(extremes)(call, n, &chunk, &lowest, &highest); /* after truncation */
    }
    if (lowest < totals->lowest) totals->lowest = lowest;
    if (highest > totals->highest) totals->highest = highest;
    NAME(weigh)(n, usable, highest, &chunk, totals);
    if (inside) {
      NAME(losses)(call, at, n, chunk.weight, NAME(zeros), &chunk, totals);
    } else {
      VECTOR for (int64_t j = 0; j < n; j++) chunk.weight[j] = EXP(chunk.exponent[j]);
      NAME(losses)(call, at, n, chunk.weight, chunk.frozen, &chunk, totals);
    }
    state.tokens += tokens;
  }
  totals->sequences += state.tokens > 0;
  if (call->through && call->gradient) NAME(through)(call, start, length, state.tokens);
}
