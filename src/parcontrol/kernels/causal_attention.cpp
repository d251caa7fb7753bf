// Causal attention behind a prefix, in bfloat16 on processors with AMX: forward pass, and backward pass from its
// log-sum-exp (Dao et al., arXiv 2205.14135, algorithms 1 and 4).
//
// torch's own kernel needs four times as long as its matrix products for the backward pass there. This one takes the
// products from the same library (oneDNN's batch-reduce GEMM, through ATen) and differs in how it lays out the scores:
// keys along rows, queries along columns. Maxima, sums and differences of the softmax are then plain operations on
// vectors of queries, and what comes out of them is in the layout in which the next product takes its left factor.
// The right factor of a product has its rows interleaved in pairs (VNNI: element (r, c) at [r / 2][c][r % 2]).
//
// Shapes: R rows, H heads, G key/value heads, T queries, N keys of which the first N - T are the prefix, d head size.
// Query t sees the whole prefix and keys N - T .. N - T + t. Probabilities and their gradients are rounded to bfloat16
// where they enter a product; every sum is a float.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using at::native::cpublas::brgemm;
using bf16 = at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t LANES = Vec::size();  // 16
constexpr int64_t PAIR = 2 * LANES;     // queries are handled, and blocks of them padded, in pairs of vectors
// Scores of a block, 64 KiB, stay in the second-level cache with all that belongs to them. Larger and smaller blocks of
// queries (128) and keys (32, 128) are within a tenth.
constexpr int64_t QUERY_BLOCK = 256, KEY_BLOCK = 64;
// The reference of a query's exponents follows its maximum only where that has grown by more: exp(8) is harmless, and
// the sums so far seldom have to be scaled anew.
constexpr float SLACK = 8.0f;
constexpr float INF = std::numeric_limits<float>::infinity();

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

Vec load(const float* x) { return Vec::loadu(x); }

// 32 floats to bfloat16.
void store_bf16(Vec low, Vec high, bf16* out) { at::vec::convert_from_float<bf16>(low, high).store(out); }

// 16 columns of two rows to bfloat16, interleaved.
void store_interleaved(Vec even_row, Vec odd_row, bf16* out) {
  static const __m512i order = [] {
    uint16_t source[32];
    for (int i = 0; i < 32; i++) source[i] = i / 2 + 16 * (i % 2);
    return _mm512_loadu_si512(source);
  }();
  const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd_row, even_row));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, rounded));
}

// [rows, columns] -> VNNI [rows / 2, columns, 2].
void interleave(const bf16* in, int64_t stride, int64_t rows, int64_t columns, bf16* out) {
  const auto source = reinterpret_cast<const uint16_t*>(in);
  const auto pairs = reinterpret_cast<uint32_t*>(out);
  for (int64_t r = 0; r < rows; r += 2) {
    const uint16_t *even = source + r * stride, *odd = even + stride;
    uint32_t* row = pairs + r / 2 * columns;
    if (r + 1 < rows) {
      for (int64_t c = 0; c < columns; c++) row[c] = even[c] | static_cast<uint32_t>(odd[c]) << 16;
    } else {
      for (int64_t c = 0; c < columns; c++) row[c] = even[c];
    }
  }
}

// [rows, columns] -> VNNI of the transpose, [columns / 2, out_rows, 2]: a transpose of 32-bit pairs. The columns are a
// multiple of 32.
void interleave_transpose(const bf16* in, int64_t stride, int64_t rows, int64_t columns, bf16* out, int64_t out_rows) {
  const auto source = reinterpret_cast<const float*>(in);
  const auto target = reinterpret_cast<float*>(out);
  const int64_t whole = rows / LANES * LANES;
  for (int64_t r = 0; r < whole; r += LANES)
    for (int64_t pair = 0; pair < columns / 2; pair += LANES)
      at::vec::transpose_mxn<float>(
          source + r * (stride / 2) + pair, stride / 2, target + pair * out_rows + r, out_rows, LANES, LANES);
  const auto source_bits = reinterpret_cast<const uint32_t*>(in);
  const auto target_bits = reinterpret_cast<uint32_t*>(out);
  for (int64_t r = whole; r < rows; r++)
    for (int64_t pair = 0; pair < columns / 2; pair++)
      target_bits[pair * out_rows + r] = source_bits[r * (stride / 2) + pair];
}

// [rows, columns] -> [columns, out_stride], by way of `pairs`, which has room for columns / 2 · out_stride of them.
void transpose(const bf16* in, int64_t stride, int64_t rows, int64_t columns, bf16* out, int64_t out_stride,
               std::vector<uint32_t>& pairs) {
  interleave_transpose(in, stride, rows, columns, reinterpret_cast<bf16*>(pairs.data()), out_stride);
  const auto target = reinterpret_cast<uint16_t*>(out);
  for (int64_t c = 0; c < columns; c++) {
    const uint32_t* row = pairs.data() + c / 2 * out_stride;
    const int shift = c % 2 * 16;
    for (int64_t r = 0; r < rows; r++) target[c * out_stride + r] = static_cast<uint16_t>(row[r] >> shift);
  }
}

// factor · the transpose of floats [columns, stride], as bfloat16 [rows, out_stride].
void store_transpose(const float* in, int64_t stride, int64_t rows, int64_t columns, float factor, bf16* out,
                     int64_t out_stride) {
  float block[LANES * PAIR];
  const Vec by(factor);
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += PAIR) {
      at::vec::transpose_mxn<float>(in + c * stride + r, stride, block, PAIR, LANES, LANES);
      at::vec::transpose_mxn<float>(in + (c + LANES) * stride + r, stride, block + LANES, PAIR, LANES, LANES);
      for (int64_t i = 0; i < std::min(LANES, rows - r); i++) {
        const float* row = block + i * PAIR;
        store_bf16(load(row) * by, load(row + LANES) * by, out + (r + i) * out_stride + c);
      }
    }
}

struct Shape {
  int64_t R, H, T, d, G, N, prefix;

  Shape(const Tensor& query, const Tensor& key, const Tensor& value, double scale)
      : R(query.size(0)), H(query.size(1)), T(query.size(2)), d(query.size(3)), G(key.size(1)), N(key.size(2)),
        prefix(N - T) {
    TORCH_CHECK(key.sizes() == value.sizes() && key.size(0) == R && key.size(3) == d && H % G == 0 && prefix >= 0,
                "shapes of query ", query.sizes(), ", key ", key.sizes(), " and value ", value.sizes());
    TORCH_CHECK(scale > 0, "the scale must be positive; it is ", scale);
    TORCH_CHECK(d % PAIR == 0, "the head size must be a multiple of 32; it is ", d);
    for (const Tensor& x : {query, key, value})
      TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.stride(3) == 1 && x.stride(2) % 2 == 0,
                  "factors must be bfloat16 with adjacent columns");
  }
};

// Row r and head h of a [R, H, rows, d] tensor.
const bf16* matrix(const Tensor& x, int64_t r, int64_t h) {
  return x.const_data_ptr<bf16>() + r * x.stride(0) + h * x.stride(1);
}

// A block of queries and a block of keys: sizes, and the first query, to a multiple of 32, that sees any of the keys.
struct Block {
  int64_t keys, first, queries;

  Block(const Shape& shape, int64_t query, int64_t padded, int64_t key, int64_t visible)
      : keys(std::min(KEY_BLOCK, visible - key)),
        first(std::max<int64_t>(0, key - shape.prefix - query) / PAIR * PAIR), queries(padded - first) {}
};

// Scores of keys that come after their query become -inf.
void hide_future(const Shape& shape, const Block& block, int64_t query, int64_t key, float* scores, int64_t stride) {
  for (int64_t k = 0; k < block.keys; k++) {
    const int64_t seeing = std::min(key + k - shape.prefix - query, stride);
    for (int64_t q = block.first; q < seeing; q++) scores[k * stride + q] = -INF;
  }
}

// query [R, H, T, d], key and value [R, G, N, d] -> output [R, T, H, d] and the log-sum-exp of the scores [R, H, T].
std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  const Shape shape(query, key, value, scale);
  const auto [R, H, T, d, G, N, prefix] = shape;
  const int64_t padded_keys = round_up(N, KEY_BLOCK);
  Tensor output = at::empty({R, T, H, d}, query.options());
  Tensor lse = at::empty({R, H, T}, query.options().dtype(at::kFloat));
  at::parallel_for(0, R * H, 1, [&, R = R, H = H, T = T, d = d, G = G, N = N, prefix = prefix](int64_t begin, int64_t end) {
    std::vector<uint32_t> pairs(d / 2 * padded_keys);
    std::vector<bf16> queries(d * QUERY_BLOCK), values(d * padded_keys), probabilities(KEY_BLOCK * QUERY_BLOCK);
    std::vector<float> scores(KEY_BLOCK * QUERY_BLOCK), sums(d * QUERY_BLOCK), peaks(QUERY_BLOCK), norms(QUERY_BLOCK);
    const Vec factor(static_cast<float>(scale));
    for (int64_t task = begin; task < end; task++) {
      const int64_t r = task / H, h = task % H, g = h / (H / G);
      const bf16 *q_Td = matrix(query, r, h), *k_Nd = matrix(key, r, g), *v_Nd = matrix(value, r, g);
      transpose(v_Nd, value.stride(2), N, d, values.data(), padded_keys, pairs);
      for (int64_t q = 0; q < T; q += QUERY_BLOCK) {
        const int64_t count = std::min(QUERY_BLOCK, T - q), padded = round_up(count, PAIR);
        if (count < padded) std::fill(queries.begin(), queries.end(), bf16(0.0f));
        interleave_transpose(q_Td + q * query.stride(2), query.stride(2), count, d, queries.data(), padded);
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(norms.begin(), norms.end(), 0.0f);
        std::fill(peaks.begin(), peaks.end(), -INF);
        const int64_t visible = std::min(N, prefix + q + count);
        for (int64_t k = 0; k < visible; k += KEY_BLOCK) {
          const Block block(shape, q, padded, k, visible);
          brgemm(block.keys, block.queries, d, key.stride(2), padded, padded, false, k_Nd + k * key.stride(2),
                 queries.data() + 2 * block.first, scores.data() + block.first);
          hide_future(shape, block, q, k, scores.data(), padded);
          for (int64_t i = block.first; i < padded; i += LANES) {
            const float* s = scores.data() + i;
            Vec peak = load(&peaks[i]), norm = load(&norms[i]), highest = peak;
            for (int64_t j = 0; j < block.keys; j++) highest = at::vec::maximum(highest, load(s + j * padded));
            // Not "greater": NaN must get through.
            if (_mm512_cmp_ps_mask((highest - peak) * factor, Vec(SLACK), _CMP_NLE_UQ)) {
              const Vec shrink = ((peak - highest) * factor).exp_u20();
              norm = norm * shrink;
              for (int64_t c = 0; c < d; c++) (load(&sums[c * padded + i]) * shrink).store(&sums[c * padded + i]);
              peak = highest;
              peak.store(&peaks[i]);
            }
            for (int64_t j = 0; j < block.keys; j += 2) {
              const Vec even = ((load(s + j * padded) - peak) * factor).exp_u20();
              const Vec odd = j + 1 < block.keys ? ((load(s + (j + 1) * padded) - peak) * factor).exp_u20() : Vec(0.0f);
              norm = norm + even + odd;
              store_interleaved(even, odd, probabilities.data() + j * padded + 2 * i);
            }
            norm.store(&norms[i]);
          }
          brgemm(d, block.queries, round_up(block.keys, 2), padded_keys, padded, padded, true, values.data() + k,
                 probabilities.data() + 2 * block.first, sums.data() + block.first);
        }
        for (int64_t i = 0; i < padded; i += LANES) {
          const Vec norm = load(&norms[i]);
          for (int64_t c = 0; c < d; c++) (load(&sums[c * padded + i]) / norm).store(&sums[c * padded + i]);
          (load(&peaks[i]) * factor + norm.log()).store(&norms[i]);
        }
        std::copy_n(norms.begin(), count, lse.mutable_data_ptr<float>() + (r * H + h) * T + q);
        store_transpose(sums.data(), padded, count, d, 1.0f,
                        output.mutable_data_ptr<bf16>() + ((r * T + q) * H + h) * d, H * d);
      }
    }
    at::native::cpublas::brgemm_release();
  });
  return {output, lse};
}

// The gradients of query [R, T, H, d], key and value [R, G, N, d], given that of the output [R, T, H, d].
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& output, const Tensor& lse,
                                            double scale) {
  const Shape shape(query, key, value, scale);
  const auto [R, H, T, d, G, N, prefix] = shape;
  TORCH_CHECK(grad_output.is_contiguous() && output.is_contiguous() && lse.is_contiguous(), "gradient, output and log-sum-exp must be contiguous");
  const int64_t padded_keys = round_up(N, KEY_BLOCK), stride = H * d;
  // A task has all heads of a key/value head, whose gradients then stay in the cache; with few of those it has one
  // head, so that no thread is idle.
  const int64_t threads = at::get_num_threads();
  const int64_t heads = R * G % threads == 0 || R * G >= 8 * threads ? H / G : 1;
  Tensor grad_query = at::empty({R, T, H, d}, query.options());
  Tensor grad_key = at::empty({R, H / heads, N, d}, query.options()), grad_value = at::empty_like(grad_key);
  at::parallel_for(0, R * H / heads, 1, [&, H = H, T = T, d = d, G = G, N = N, prefix = prefix](int64_t begin, int64_t end) {
    std::vector<uint32_t> pairs(d / 2 * padded_keys);
    std::vector<bf16> keys(d * padded_keys), q_right(d * QUERY_BLOCK), q_columns(d * QUERY_BLOCK),
        g_right(d * QUERY_BLOCK), g_columns(d * QUERY_BLOCK), p(KEY_BLOCK * QUERY_BLOCK), ds(KEY_BLOCK * QUERY_BLOCK),
        ds_right(KEY_BLOCK * QUERY_BLOCK);
    std::vector<float> scores(KEY_BLOCK * QUERY_BLOCK), dp(KEY_BLOCK * QUERY_BLOCK), dq(d * QUERY_BLOCK), dk(N * d),
        dv(N * d), logs(QUERY_BLOCK), inner(QUERY_BLOCK);
    const Vec factor(static_cast<float>(scale));
    for (int64_t task = begin; task < end; task++) {
      const int64_t r = task * heads / H, first_head = task * heads % H, g = first_head / (H / G);
      const bf16 *k_Nd = matrix(key, r, g), *v_Nd = matrix(value, r, g);
      transpose(k_Nd, key.stride(2), N, d, keys.data(), padded_keys, pairs);
      std::fill(dk.begin(), dk.end(), 0.0f);
      std::fill(dv.begin(), dv.end(), 0.0f);
      for (int64_t h = first_head; h < first_head + heads; h++) {
        for (int64_t q = 0; q < T; q += QUERY_BLOCK) {
          const int64_t count = std::min(QUERY_BLOCK, T - q), padded = round_up(count, PAIR);
          const int64_t row = ((r * T + q) * H + h) * d;
          const bf16* q_Td = matrix(query, r, h) + q * query.stride(2);
          const bf16 *g_Td = grad_output.const_data_ptr<bf16>() + row, *o_Td = output.const_data_ptr<bf16>() + row;
          // Queries of the padding are zero and have an infinite log-sum-exp: probability 0.
          if (count < padded)
            for (auto* x : {&q_right, &q_columns, &g_right, &g_columns}) std::fill(x->begin(), x->end(), bf16(0.0f));
          std::fill(logs.begin(), logs.end(), INF);
          std::fill(inner.begin(), inner.end(), 0.0f);
          interleave_transpose(q_Td, query.stride(2), count, d, q_columns.data(), padded);
          interleave_transpose(g_Td, stride, count, d, g_columns.data(), padded);
          interleave(q_Td, query.stride(2), count, d, q_right.data());
          interleave(g_Td, stride, count, d, g_right.data());
          std::copy_n(lse.const_data_ptr<float>() + (r * H + h) * T + q, count, logs.begin());
          for (int64_t i = 0; i < count; i++)
            inner[i] = at::vec::map2_reduce_all<bf16>([](Vec a, Vec b) { return a * b; },
                                                      [](Vec a, Vec b) { return a + b; }, g_Td + i * stride,
                                                      o_Td + i * stride, d);
          std::fill(dq.begin(), dq.end(), 0.0f);
          const int64_t visible = std::min(N, prefix + q + count);
          for (int64_t k = 0; k < visible; k += KEY_BLOCK) {
            const Block block(shape, q, padded, k, visible);
            const int64_t first = block.first;
            brgemm(block.keys, block.queries, d, key.stride(2), padded, padded, false, k_Nd + k * key.stride(2),
                   q_columns.data() + 2 * first, scores.data() + first);
            brgemm(block.keys, block.queries, d, value.stride(2), padded, padded, false, v_Nd + k * value.stride(2),
                   g_columns.data() + 2 * first, dp.data() + first);
            hide_future(shape, block, q, k, scores.data(), padded);
            // p = exp(s - lse) and ds = p (dp - inner), without the scale, which dq and dk get at the end.
            for (int64_t j = 0; j < block.keys; j++)
              for (int64_t i = first; i < padded; i += PAIR) {
                const int64_t low = j * padded + i, high = low + LANES;
                const Vec p_low = (load(&scores[low]) * factor - load(&logs[i])).exp_u20();
                const Vec p_high = (load(&scores[high]) * factor - load(&logs[i + LANES])).exp_u20();
                store_bf16(p_low, p_high, &p[low]);
                store_bf16(p_low * (load(&dp[low]) - load(&inner[i])),
                           p_high * (load(&dp[high]) - load(&inner[i + LANES])), &ds[low]);
              }
            interleave(ds.data() + first, padded, block.keys, block.queries, ds_right.data());
            brgemm(block.keys, d, block.queries, padded, d, d, true, p.data() + first, g_right.data() + first * d,
                   dv.data() + k * d);
            brgemm(block.keys, d, block.queries, padded, d, d, true, ds.data() + first, q_right.data() + first * d,
                   dk.data() + k * d);
            brgemm(d, block.queries, round_up(block.keys, 2), padded_keys, block.queries, padded, true, keys.data() + k,
                   ds_right.data(), dq.data() + first);
          }
          store_transpose(dq.data(), padded, count, d, static_cast<float>(scale),
                          grad_query.mutable_data_ptr<bf16>() + row, stride);
        }
      }
      bf16* k_out = grad_key.mutable_data_ptr<bf16>() + task * N * d;
      bf16* v_out = grad_value.mutable_data_ptr<bf16>() + task * N * d;
      for (int64_t i = 0; i < N * d; i += PAIR) {
        store_bf16(load(&dk[i]) * factor, load(&dk[i + LANES]) * factor, k_out + i);
        store_bf16(load(&dv[i]), load(&dv[i + LANES]), v_out + i);
      }
    }
    at::native::cpublas::brgemm_release();
  });
  const auto by_group = [&, R = R, H = H, G = G, N = N, d = d](const Tensor& x) {
    return heads == H / G ? x : x.view({R, G, H / G, N, d}).sum(2);
  };
  return {grad_query, by_group(grad_key), by_group(grad_value)};
}

// Whether oneDNN may use AMX here, which an environment variable of its own can forbid.
bool is_supported() { return at::native::cpublas::could_pack(at::kBFloat16); }

}  // namespace

TORCH_LIBRARY(parcontrol, library) {
  library.def("causal_attention(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)");
  library.def(
      "causal_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, "
      "Tensor lse, float scale) -> (Tensor, Tensor, Tensor)");
  library.def("causal_attention_is_supported() -> bool", is_supported);
}

TORCH_LIBRARY_IMPL(parcontrol, CPU, library) {
  library.impl("causal_attention", forward);
  library.impl("causal_attention_backward", backward);
}
