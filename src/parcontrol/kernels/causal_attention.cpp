// Causal attention behind a prefix, in bfloat16 on processors with AMX: forward pass, and backward pass from its
// log-sum-exp (Dao et al., arXiv 2205.14135, algorithms 1 and 4).
//
// A product takes tiles of 16 rows of 64 bytes. All factors are laid out so that a tile is 1 KiB of adjacent memory:
//   left factor [m, k]    panels of 32 columns  [k / 32][m][32]
//   right factor [k, n]   panels of 16 columns, their rows interleaved in pairs (VNNI)  [n / 16][k / 2][16][2]
//   product [m, n]        panels of 16 columns, floats  [n / 16][m][16]
// Scores have keys along rows, queries along columns. Maxima, sums and differences of the softmax are then plain
// operations on vectors of queries, and what comes out of them is in the layout in which the next product takes it.
// Scores of a strip of 32 queries and a block of keys never leave the first-level cache: elsewhere (torch's kernel,
// oneDNN's GEMM called for each block) writing and reading them takes most of the time.
//
// Shapes: R rows, H heads, G key/value heads, T queries, N keys of which the first N - T are the prefix, d head size.
// Query t sees the whole prefix and keys N - T .. N - T + t. Probabilities and their gradients are rounded to bfloat16
// where they enter a product; every sum is a float. Exponents and logarithms are to the base 2.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using bf16 = at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t TILE = 16;      // rows of a tile; floats, or pairs of bfloat16s, in one of its rows
constexpr int64_t STRIP = 32;     // two tiles: products are made of 2 x 2, and all sizes are padded to it
constexpr int64_t KEYS = 64;      // of a block; scores of a strip of queries, and their gradients, take 8 KiB each
constexpr int64_t QUERIES = 256;  // of a block of the backward pass; half as many, or keys, are within a tenth
// The reference of a query's exponents follows its maximum only where that has grown by more: 2^12 is harmless, and
// the sums so far seldom have to be scaled anew.
constexpr float SLACK = 12.0f;
constexpr float INF = std::numeric_limits<float>::infinity();

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

Vec load(const float* x) { return Vec::loadu(x); }

// 2^x to 2e-7; a polynomial for the fraction, an instruction for the whole number.
Vec exp2(Vec x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 result = _mm512_set1_ps(0.00187758f);
  for (const float c : {0.00898934f, 0.05582632f, 0.24015362f, 0.69315307f, 0.99999993f})
    result = _mm512_fmadd_ps(result, fraction, _mm512_set1_ps(c));
  return _mm512_scalef_ps(result, x);
}

// Memory in whole cache lines: no row of a tile crosses one.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size(size), lines(round_up(size * sizeof(T), 64) / 64) {}
  T* data() { return reinterpret_cast<T*>(lines.data()); }
  T& operator[](int64_t i) { return data()[i]; }
  void fill(T x) { std::fill_n(data(), size, x); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  int64_t size;
  std::vector<Line> lines;
};

// While it lives, all tiles of the thread have 16 rows of 64 bytes.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// out [m, n] = or += left [m, k] · right [k, n]. The panels of each may have more rows than are used.
void product(const bf16* left, int64_t left_rows, const bf16* right, int64_t right_rows, float* out, int64_t out_rows,
             int64_t m, int64_t n, int64_t k, bool add) {
  constexpr int64_t BYTES = 64;
  asm volatile("" ::: "memory");  // GCC 12 does not know that a tile is loaded from memory
  for (int64_t column = 0; column < n; column += STRIP) {
    const bf16 *right_low = right + column * right_rows, *right_high = right_low + TILE * right_rows;
    for (int64_t row = 0; row < m; row += STRIP) {
      float *low = out + column * out_rows + row * TILE, *high = low + TILE * out_rows;
      if (add) {
        _tile_loadd(0, low, BYTES);
        _tile_loadd(1, low + TILE * TILE, BYTES);
        _tile_loadd(2, high, BYTES);
        _tile_loadd(3, high + TILE * TILE, BYTES);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const bf16* rows = left + row * STRIP;
      for (int64_t step = 0; step < k; step += STRIP) {
        _tile_loadd(4, rows + step * left_rows, BYTES);
        _tile_loadd(6, right_low + step * TILE, BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, rows + step * left_rows + TILE * STRIP, BYTES);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, right_high + step * TILE, BYTES);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, low, BYTES);
      _tile_stored(1, low + TILE * TILE, BYTES);
      _tile_stored(2, high, BYTES);
      _tile_stored(3, high + TILE * TILE, BYTES);
    }
  }
}

__m512bh load_bf16(const bf16* x) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(x)); }

// 32 floats to bfloat16.
void store_bf16(Vec low, Vec high, bf16* out) {
  _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// Where each of 32 numbers of 16 bits comes from.
struct alignas(64) Order {
  uint16_t source[32];

  constexpr explicit Order(auto source_of) : source() {
    for (int i = 0; i < 32; i++) source[i] = source_of(i);
  }
  operator __m512i() const { return _mm512_load_si512(source); }
};
constexpr Order INTERLEAVED([](int i) { return i / 2 + i % 2 * 16; });
constexpr Order EVEN([](int i) { return 2 * i; }), ODD([](int i) { return 2 * i + 1; });

// 16 columns of two rows to bfloat16, interleaved.
void store_interleaved(Vec even_row, Vec odd_row, bf16* out) {
  const auto rows = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd_row, even_row));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(INTERLEAVED, rows));
}

// 32 rows of a matrix [rows, d], from row `first`: where they are, or, with zeros after the last, in `spare`.
struct Strip {
  const bf16* data;
  int64_t stride;

  Strip(const bf16* matrix, int64_t stride, int64_t first, int64_t rows, int64_t d, Buffer<bf16>& spare)
      : data(matrix + first * stride), stride(stride) {
    if (rows - first >= STRIP) return;
    spare.fill(0.0f);
    for (int64_t r = first; r < rows; r++) std::copy_n(matrix + r * stride, d, spare.data() + (r - first) * d);
    data = spare.data();
    this->stride = d;
  }
};

// Asks for the rows that come next: they are far apart, so that the processor cannot guess them.
void prefetch(const bf16* matrix, int64_t stride, int64_t first, int64_t rows, int64_t d) {
  for (int64_t r = first; r < std::min(first + STRIP, rows); r++)
    for (int64_t c = 0; c < d; c += STRIP) _mm_prefetch(matrix + r * stride + c, _MM_HINT_T0);
}

// The strip as 32 rows of a left factor, which has `rows` of them.
void pack_left(const Strip& strip, int64_t d, bf16* out, int64_t rows) {
  for (int64_t c = 0; c < d; c += STRIP)
    for (int64_t r = 0; r < STRIP; r++)
      _mm512_store_si512(out + c * rows + r * STRIP, _mm512_loadu_si512(strip.data + r * strip.stride + c));
}

// Its transpose as 32 columns of a left factor of d rows.
void pack_left_transpose(const Strip& strip, int64_t d, bf16* out) {
  alignas(64) float pairs[2][TILE * TILE];
  for (int64_t c = 0; c < d; c += STRIP) {
    for (int64_t half = 0; half < 2; half++)
      at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(strip.data + half * TILE * strip.stride + c),
                                    strip.stride / 2, pairs[half], TILE, TILE, TILE);
    for (int64_t p = 0; p < TILE; p++) {
      const __m512i first = _mm512_load_si512(pairs[0] + p * TILE), second = _mm512_load_si512(pairs[1] + p * TILE);
      bf16* row = out + (c + 2 * p) * STRIP;
      _mm512_store_si512(row, _mm512_permutex2var_epi16(first, EVEN, second));
      _mm512_store_si512(row + STRIP, _mm512_permutex2var_epi16(first, ODD, second));
    }
  }
}

// The strip as 32 rows of a right factor, which has `rows` of them.
void pack_right(const Strip& strip, int64_t d, bf16* out, int64_t rows) {
  for (int64_t c = 0; c < d; c += TILE)
    for (int64_t r = 0; r < STRIP; r += 2) {
      const bf16* even = strip.data + r * strip.stride + c;
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + strip.stride));
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
      _mm512_store_si512(out + c * rows + r * TILE, _mm512_permutexvar_epi16(INTERLEAVED, both));
    }
}

// Its transpose as 32 columns of a right factor of d rows.
void pack_right_transpose(const Strip& strip, int64_t d, bf16* out) {
  for (int64_t half = 0; half < 2; half++)
    for (int64_t c = 0; c < d; c += STRIP)
      at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(strip.data + half * TILE * strip.stride + c),
                                    strip.stride / 2, reinterpret_cast<float*>(out + half * TILE * d + c * TILE), TILE,
                                    TILE, TILE);
}

// factor · the transpose of a product [d, 32], as `rows` rows of bfloat16.
void store_transpose(const float* in, int64_t d, float factor, bf16* out, int64_t stride, int64_t rows) {
  alignas(64) float block[2][TILE * TILE];
  const Vec by(factor);
  for (int64_t r = 0; r < rows; r += TILE)
    for (int64_t c = 0; c < d; c += STRIP) {
      for (int64_t half = 0; half < 2; half++)
        at::vec::transpose_mxn<float>(in + r * d + (c + half * TILE) * TILE, TILE, block[half], TILE, TILE, TILE);
      for (int64_t i = 0; i < std::min(TILE, rows - r); i++)
        store_bf16(load(block[0] + i * TILE) * by, load(block[1] + i * TILE) * by, out + (r + i) * stride + c);
    }
}

// factor · a product [rows of its panels, d], as `rows` adjacent rows of bfloat16.
void store(const float* in, int64_t panel_rows, int64_t rows, int64_t d, float factor, bf16* out) {
  const Vec by(factor);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < d; c += STRIP) {
      const float* low = in + c * panel_rows + r * TILE;
      store_bf16(load(low) * by, load(low + panel_rows * TILE) * by, out + r * d + c);
    }
}

struct Shape {
  int64_t R, H, T, d, G, N, prefix;
  int64_t padded_keys;
  int64_t heads;  // of a task: all of a key/value head, or, with few of those, one, so that no thread is idle
  int64_t tasks;  // of a row

  Shape(const Tensor& query, const Tensor& key, const Tensor& value, double scale)
      : R(query.size(0)), H(query.size(1)), T(query.size(2)), d(query.size(3)), G(key.size(1)), N(key.size(2)),
        prefix(N - T), padded_keys(round_up(N, STRIP)) {
    TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && key.sizes() == value.sizes() && key.size(0) == R &&
                    key.size(3) == d && G > 0 && H > 0 && H % G == 0 && prefix >= 0,
                "shapes of query ", query.sizes(), ", key ", key.sizes(), " and value ", value.sizes(),
                " do not go together");
    TORCH_CHECK(static_cast<float>(scale) > 0, "the scale must be positive; it is ", scale);
    TORCH_CHECK(d > 0 && d % STRIP == 0, "the head size must be a multiple of 32; it is ", d);
    for (const Tensor& x : {query, key, value}) {
      TORCH_CHECK(x.scalar_type() == at::kBFloat16, "factors must be bfloat16; one is ", x.scalar_type());
      // Pairs of columns are moved as one number of 32 bits.
      TORCH_CHECK(x.stride(3) == 1 && x.stride(2) % 2 == 0,
                  "columns must be adjacent, and rows an even number of elements apart; strides are ", x.strides());
    }
    const int64_t threads = at::get_num_threads();
    heads = R * G % threads == 0 || R * G >= 8 * threads ? H / G : 1;
    tasks = H / heads;
  }

  // Where query t of a head begins in a [R, T, H, d] tensor.
  int64_t row(int64_t r, int64_t h, int64_t t) const { return ((r * T + t) * H + h) * d; }
};

// Row r and head h of a [R, H, rows, d] tensor.
const bf16* matrix(const Tensor& x, int64_t r, int64_t h) {
  return x.const_data_ptr<bf16>() + r * x.stride(0) + h * x.stride(1);
}

// Scores [keys, 16] of keys that come after their query become -inf; `first` is the place of the first key, counted
// from that of the first query.
void hide_future(float* scores, int64_t keys, int64_t first) {
  for (int64_t k = std::max<int64_t>(0, 1 - first); k < keys; k++) {
    const auto earlier_queries = static_cast<__mmask16>((1u << std::min(first + k, TILE)) - 1);
    _mm512_mask_storeu_ps(scores + k * TILE, earlier_queries, _mm512_set1_ps(-INF));
  }
}

// The forward pass of tasks that follow one another in a thread, and the memory for it.
class Forward {
 public:
  Forward(const Shape& shape, const Tensor& query, const Tensor& key, const Tensor& value, double scale, bf16* output,
          float* logs)
      : shape(shape), query(query), key(key), value(value), factor(scale * M_LOG2E), output(output), logs(logs),
        keys(shape.padded_keys * shape.d), values(shape.padded_keys * shape.d), queries(STRIP * shape.d),
        spare(STRIP * shape.d), probabilities(KEYS * STRIP), scores(KEYS * STRIP), sums(shape.d * STRIP), peaks(STRIP),
        norms(STRIP) {}

  void run(int64_t task) {
    const int64_t r = task / shape.tasks, first = task % shape.tasks * shape.heads, g = first / (shape.H / shape.G);
    for (int64_t k = 0; k < shape.N; k += STRIP) {
      pack_left({matrix(key, r, g), key.stride(2), k, shape.N, shape.d, spare}, shape.d, &keys[k * STRIP],
                shape.padded_keys);
      pack_left_transpose({matrix(value, r, g), value.stride(2), k, shape.N, shape.d, spare}, shape.d,
                          &values[k * shape.d]);
    }
    for (int64_t h = first; h < first + shape.heads; h++)
      for (int64_t q = 0; q < shape.T; q += STRIP) attend(r, h, q);
  }

 private:
  // A strip of queries, from q, to all keys that it sees.
  void attend(int64_t r, int64_t h, int64_t q) {
    const int64_t T = shape.T, d = shape.d, count = std::min(STRIP, T - q);
    const bf16* q_Td = matrix(query, r, h);
    pack_right_transpose({q_Td, query.stride(2), q, T, d, spare}, d, queries.data());
    prefetch(q_Td, query.stride(2), q + STRIP, T, d);
    sums.fill(0.0f);
    norms.fill(0.0f);
    peaks.fill(-INF);
    const int64_t visible = round_up(shape.prefix + q + count, STRIP);
    for (int64_t k = 0; k < visible; k += KEYS) {
      const int64_t n = std::min(KEYS, visible - k);
      product(&keys[k * STRIP], shape.padded_keys, queries.data(), d, scores.data(), n, n, STRIP, d, false);
      for (int64_t i = 0; i < STRIP; i += TILE) {
        hide_future(&scores[i * n], n, k - shape.prefix - q - i);
        exponentiate(i, n);
      }
      product(&values[k * d], d, probabilities.data(), n, sums.data(), d, d, STRIP, n, true);
    }
    for (int64_t i = 0; i < STRIP; i += TILE) {
      const Vec norm = load(&norms[i]), inverse = Vec(1.0f) / norm;
      float* sum = &sums[i * d];
      for (int64_t c = 0; c < d; c++) (load(sum + c * TILE) * inverse).store(sum + c * TILE);
      (load(&peaks[i]) * factor + norm.log2()).store(&norms[i]);
    }
    std::copy_n(norms.data(), count, logs + (r * shape.H + h) * T + q);
    store_transpose(sums.data(), d, 1.0f, output + shape.row(r, h, q), shape.H * d, count);
  }

  // Of 16 queries, from i: scores of a block of n keys -> probabilities, up to a factor, as columns of a right factor.
  // Their sums are added to the norms; both, and the sums of values, are in proportion to 2^-peak.
  void exponentiate(int64_t i, int64_t n) {
    const Vec factor = this->factor;  // in a register: stores of vectors may change any member
    const float* s = &scores[i * n];
    float* sum = &sums[i * shape.d];
    bf16* pairs = &probabilities[i * n];
    Vec peak = load(&peaks[i]), norm = load(&norms[i]);
    // Several maxima, since each waits for the one before. They may miss NaN, but its exponential is NaN.
    __m512 highest[4] = {peak, peak, peak, peak};
    for (int64_t k = 0; k < n; k += 4)
      for (int64_t j = 0; j < 4; j++) highest[j] = _mm512_max_ps(highest[j], load(s + (k + j) * TILE));
    const Vec top = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3]));
    if (_mm512_cmp_ps_mask((top - peak) * factor, Vec(SLACK), _CMP_GT_OQ)) {
      const Vec shrink = exp2((peak - top) * factor);
      norm = norm * shrink;
      for (int64_t c = 0; c < shape.d; c++) (load(sum + c * TILE) * shrink).store(sum + c * TILE);
      peak = top;
      peak.store(&peaks[i]);
    }
    for (int64_t k = 0; k < n; k += 2) {
      const Vec even = exp2((load(s + k * TILE) - peak) * factor);
      const Vec odd = exp2((load(s + (k + 1) * TILE) - peak) * factor);
      norm = norm + even + odd;
      store_interleaved(even, odd, pairs + k * TILE);
    }
    norm.store(&norms[i]);
  }

  const Shape& shape;
  const Tensor &query, &key, &value;
  const Vec factor;
  bf16* output;
  float* logs;
  Buffer<bf16> keys, values, queries, spare, probabilities;
  Buffer<float> scores, sums, peaks, norms;
};

// query [R, H, T, d], key and value [R, G, N, d] -> output [R, T, H, d] and log2 of the sum of exponentials [R, H, T].
std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  const Shape shape(query, key, value, scale);
  Tensor output = at::empty({shape.R, shape.T, shape.H, shape.d}, query.options());
  Tensor logs = at::empty({shape.R, shape.H, shape.T}, query.options().dtype(at::kFloat));
  at::parallel_for(0, shape.R * shape.tasks, 1, [&](int64_t begin, int64_t end) {
    const Tiles tiles;
    Forward pass(shape, query, key, value, scale, output.mutable_data_ptr<bf16>(), logs.mutable_data_ptr<float>());
    for (int64_t task = begin; task < end; task++) pass.run(task);
  });
  return {output, logs};
}

// The backward pass of such tasks.
class Backward {
 public:
  Backward(const Shape& shape, const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
           const Tensor& output, const Tensor& logs, double scale, bf16* grad_query, bf16* grad_key, bf16* grad_value)
      : shape(shape), query(query), key(key), value(value), grad_output(grad_output.const_data_ptr<bf16>()),
        output(output.const_data_ptr<bf16>()), logs(logs.const_data_ptr<float>()), scale(scale),
        factor(scale * M_LOG2E), grad_query(grad_query), grad_key(grad_key), grad_value(grad_value),
        keys(shape.padded_keys * shape.d), values(shape.padded_keys * shape.d),
        key_columns(shape.padded_keys * shape.d), spare(STRIP * shape.d), queries(QUERIES * shape.d),
        query_columns(QUERIES * shape.d), grads(QUERIES * shape.d), grad_columns(QUERIES * shape.d),
        p(KEYS * QUERIES), ds(KEYS * QUERIES), ds_pairs(KEYS * QUERIES), scores(KEYS * STRIP), dp(KEYS * STRIP),
        dq(QUERIES * shape.d), dk(shape.padded_keys * shape.d), dv(shape.padded_keys * shape.d), log(QUERIES),
        inner(QUERIES) {}

  void run(int64_t task) {
    const int64_t N = shape.N, d = shape.d;
    const int64_t r = task / shape.tasks, first = task % shape.tasks * shape.heads, g = first / (shape.H / shape.G);
    for (int64_t k = 0; k < N; k += STRIP) {
      const Strip rows(matrix(key, r, g), key.stride(2), k, N, d, spare);
      pack_left(rows, d, &keys[k * STRIP], shape.padded_keys);
      pack_left_transpose(rows, d, &key_columns[k * d]);
      pack_left({matrix(value, r, g), value.stride(2), k, N, d, spare}, d, &values[k * STRIP], shape.padded_keys);
    }
    dk.fill(0.0f);
    dv.fill(0.0f);
    for (int64_t h = first; h < first + shape.heads; h++)
      for (int64_t q = 0; q < shape.T; q += QUERIES) attend(r, h, q);
    store(dk.data(), shape.padded_keys, N, d, scale, grad_key + task * N * d);
    store(dv.data(), shape.padded_keys, N, d, 1.0f, grad_value + task * N * d);
  }

 private:
  // A block of queries, from q, to all keys that it sees.
  void attend(int64_t r, int64_t h, int64_t q) {
    const int64_t d = shape.d, count = std::min(QUERIES, shape.T - q), padded = round_up(count, STRIP);
    pack(r, h, q, count);
    const int64_t visible = round_up(shape.prefix + q + count, STRIP);
    for (int64_t k = 0; k < visible; k += KEYS) {
      const int64_t n = std::min(KEYS, visible - k), place = k - shape.prefix - q;
      const int64_t first = std::max<int64_t>(0, place) / STRIP * STRIP;  // strip that sees any of the keys
      for (int64_t i = first; i < padded; i += STRIP) differentiate(i, k, n, place - i);
      const int64_t seeing = padded - first;
      product(&p[first * KEYS], KEYS, &grads[first * TILE], QUERIES, &dv[k * TILE], shape.padded_keys, n, d, seeing,
              true);
      product(&ds[first * KEYS], KEYS, &queries[first * TILE], QUERIES, &dk[k * TILE], shape.padded_keys, n, d, seeing,
              true);
      product(&key_columns[k * d], d, &ds_pairs[first * KEYS], KEYS, &dq[first * d], d, d, seeing, n, k > 0);
    }
    for (int64_t i = 0; i < count; i += STRIP)
      store_transpose(&dq[i * d], d, scale, grad_query + shape.row(r, h, q + i), shape.H * d, std::min(STRIP, count - i));
  }

  // Queries and gradients of the output as right factors, logarithms, and inner products of gradient and output.
  void pack(int64_t r, int64_t h, int64_t q, int64_t count) {
    const int64_t T = shape.T, d = shape.d, stride = shape.H * d;
    for (int64_t i = 0; i < count; i += STRIP) {
      const Strip q_rows(matrix(query, r, h), query.stride(2), q + i, T, d, spare);
      pack_right(q_rows, d, &queries[i * TILE], QUERIES);
      pack_right_transpose(q_rows, d, &query_columns[i * d]);
      const Strip g_rows(grad_output + shape.row(r, h, 0), stride, q + i, T, d, spare);
      pack_right(g_rows, d, &grads[i * TILE], QUERIES);
      pack_right_transpose(g_rows, d, &grad_columns[i * d]);
    }
    log.fill(INF);  // the padding has probability 0
    std::copy_n(logs + (r * shape.H + h) * T + q, count, log.data());
    inner.fill(0.0f);
    for (int64_t i = 0; i < count; i++) {
      const int64_t start = shape.row(r, h, q + i);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += STRIP)
        sum = _mm512_dpbf16_ps(sum, load_bf16(grad_output + start + c), load_bf16(output + start + c));
      inner[i] = _mm512_reduce_add_ps(sum);
    }
  }

  // Of a strip of queries, from i, and n keys, from k: probabilities p = exp(s - log) as a left factor, their gradients
  // ds = p (dp - inner) as a left and a right one, without the scale, which dq and dk get at the end. The place of the
  // first key counts from that of the strip's first query.
  void differentiate(int64_t i, int64_t k, int64_t n, int64_t place) {
    const int64_t d = shape.d;
    product(&keys[k * STRIP], shape.padded_keys, &query_columns[i * d], d, scores.data(), n, n, STRIP, d, false);
    product(&values[k * STRIP], shape.padded_keys, &grad_columns[i * d], d, dp.data(), n, n, STRIP, d, false);
    hide_future(scores.data(), n, place);
    hide_future(&scores[n * TILE], n, place - TILE);
    const Vec factor = this->factor, log_low = load(&log[i]), log_high = load(&log[i + TILE]);
    const Vec inner_low = load(&inner[i]), inner_high = load(&inner[i + TILE]);
    const float *s_low = scores.data(), *s_high = s_low + n * TILE, *dp_low = dp.data(), *dp_high = dp_low + n * TILE;
    bf16 *p_rows = &p[i * KEYS], *ds_rows = &ds[i * KEYS];
    bf16 *pairs_low = &ds_pairs[i * KEYS], *pairs_high = pairs_low + TILE * KEYS;
    for (int64_t j = 0; j < n; j += 2) {
      Vec low[2], high[2];
      for (int64_t o = 0; o < 2; o++) {
        const int64_t at = (j + o) * TILE;
        const Vec p_low = exp2(load(s_low + at) * factor - log_low);
        const Vec p_high = exp2(load(s_high + at) * factor - log_high);
        low[o] = p_low * (load(dp_low + at) - inner_low);
        high[o] = p_high * (load(dp_high + at) - inner_high);
        store_bf16(p_low, p_high, p_rows + 2 * at);
        store_bf16(low[o], high[o], ds_rows + 2 * at);
      }
      store_interleaved(low[0], low[1], pairs_low + j * TILE);
      store_interleaved(high[0], high[1], pairs_high + j * TILE);
    }
  }

  const Shape& shape;
  const Tensor &query, &key, &value;
  const bf16 *grad_output, *output;
  const float* logs;
  const float scale;
  const Vec factor;
  bf16 *grad_query, *grad_key, *grad_value;
  Buffer<bf16> keys, values, key_columns, spare, queries, query_columns, grads, grad_columns, p, ds, ds_pairs;
  Buffer<float> scores, dp, dq, dk, dv, log, inner;
};

// The gradients of query [R, T, H, d], key and value [R, G, N, d], given that of the output [R, T, H, d].
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& output, const Tensor& logs,
                                            double scale) {
  const Shape shape(query, key, value, scale);
  TORCH_CHECK(grad_output.is_contiguous() && output.is_contiguous() && logs.is_contiguous(),
              "gradient, output and logarithms must be contiguous");
  TORCH_CHECK(output.sizes() == at::IntArrayRef({shape.R, shape.T, shape.H, shape.d}) &&
                  grad_output.sizes() == output.sizes() && grad_output.scalar_type() == at::kBFloat16 &&
                  logs.sizes() == at::IntArrayRef({shape.R, shape.H, shape.T}),
              "gradient ", grad_output.sizes(), ", output ", output.sizes(), " and logarithms ", logs.sizes(),
              " do not belong to query ", query.sizes());
  Tensor grad_query = at::empty({shape.R, shape.T, shape.H, shape.d}, query.options());
  Tensor grad_key = at::empty({shape.R, shape.tasks, shape.N, shape.d}, query.options());
  Tensor grad_value = at::empty_like(grad_key);
  at::parallel_for(0, shape.R * shape.tasks, 1, [&](int64_t begin, int64_t end) {
    const Tiles tiles;
    Backward pass(shape, grad_output, query, key, value, output, logs, scale, grad_query.mutable_data_ptr<bf16>(),
                  grad_key.mutable_data_ptr<bf16>(), grad_value.mutable_data_ptr<bf16>());
    for (int64_t task = begin; task < end; task++) pass.run(task);
  });
  const auto by_group = [&](const Tensor& x) {
    return shape.tasks == shape.G ? x : x.view({shape.R, shape.G, shape.H / shape.G, shape.N, shape.d}).sum(2);
  };
  return {grad_query, by_group(grad_key), by_group(grad_value)};
}

// Whether this process may use AMX: the kernel must grant it, and a variable of oneDNN's own can forbid it.
bool is_supported() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM; XFEATURE_XTILEDATA
  return at::native::cpublas::could_pack(at::kBFloat16) && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

}  // namespace

TORCH_LIBRARY(parcontrol, library) {
  library.def("causal_attention(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)");
  library.def(
      "causal_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, "
      "Tensor logs, float scale) -> (Tensor, Tensor, Tensor)");
  library.def("causal_attention_is_supported() -> bool", is_supported);
}

TORCH_LIBRARY_IMPL(parcontrol, CPU, library) {
  library.impl("causal_attention", forward);
  library.impl("causal_attention_backward", backward);
}
