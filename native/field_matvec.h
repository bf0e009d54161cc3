// The int16 matrix product, written once for every vector width: see FieldKernels::matvec_i16.
// Sums of 32 bits are widened before they can overflow. The matrix is read from memory once, whatever the batch.
#pragma once

#include "field_kernels.h"

// sum_d sums[d] * 2^(bits d) mod p for sums below 2^47 in magnitude.
static inline u64 field_recombine(const Modulus& m, const i64* sums, unsigned bits) {
    const u64 lift = m.q * ((u64{1} << 62) / m.q);
    u64 r = 0;
    for (std::size_t d = kDigits; d-- > 0;)
        r = m.reduce128((u128{r} << bits) + m.reduce64(static_cast<u64>(sums[d]) + lift));
    return r;
}

// The digit sums of Rows rows against one x. Ops: V, kLanes (int16 per register), load, load_part, zero, madd (pairs of
// 16-bit products added to 32-bit sums), add_totals (the sums of the 32-bit lanes of four registers, in 64 bits).
template <class Ops, int Rows>
ALWAYS_INLINE void field_dot(const std::int16_t* w, std::size_t cols, const FieldDigits& x, std::size_t t, i64* sums) {
    const std::size_t whole = cols / Ops::kLanes * Ops::kLanes, block = ((1 << (16 - x.bits)) - 1) * Ops::kLanes;
    const std::int16_t* digits = x.words + t * kDigits * x.padded;
    for (int k = 0; k < Rows * static_cast<int>(kDigits); ++k) sums[k] = 0;
    for (std::size_t first = 0; first < cols; first += block) {
        typename Ops::V acc[Rows][kDigits];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (std::size_t d = 0; d < kDigits; ++d) acc[r][d] = Ops::zero();
        const std::size_t last = first + block < cols ? first + block : cols;
        for (std::size_t i = first; i < last; i += Ops::kLanes) {
            typename Ops::V row[Rows];
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r)
                row[r] = i < whole ? Ops::load(w + r * cols + i) : Ops::load_part(w + r * cols + i, cols - whole);
#pragma GCC unroll 4
            for (std::size_t d = 0; d < kDigits; ++d) {
                const auto digit = Ops::load(digits + d * x.padded + i);
#pragma GCC unroll 4
                for (int r = 0; r < Rows; ++r) acc[r][d] = Ops::madd(acc[r][d], row[r], digit);
            }
        }
        for (int r = 0; r < Rows; ++r) Ops::add_totals(acc[r], sums + r * kDigits);
    }
}

// The first x of a batch reads the matrix from memory, one row at a time: several rows side by side would be streams too
// short for the hardware to fetch ahead. The others find the rows in the cache and share each load of their digits.
template <class Ops, int Rows>
static void field_matvec_rows(const Modulus& m, const std::int16_t* w, const FieldDigits& x, u64* out, std::size_t rows,
                              std::size_t cols, std::size_t batch, std::size_t begin, std::size_t end) {
    i64 sums[Rows * kDigits];
    for (std::size_t o = begin; o < end; o += Rows) {
        const std::size_t step = o + Rows <= end ? Rows : end - o;
        for (std::size_t t = 0; t < batch; ++t) {
            if (t > 0 && step == Rows)
                field_dot<Ops, Rows>(w + o * cols, cols, x, t, sums);
            else
                for (std::size_t r = 0; r < step; ++r)
                    field_dot<Ops, 1>(w + (o + r) * cols, cols, x, t, sums + r * kDigits);
            for (std::size_t r = 0; r < step; ++r) out[t * rows + o + r] = field_recombine(m, sums + r * kDigits, x.bits);
        }
    }
}
