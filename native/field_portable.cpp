#include "field_kernels.h"

FieldDigits field_digits(const Modulus& m, const u64* x, std::size_t cols, std::size_t batch, std::size_t lanes,
                         std::vector<std::int16_t>& words) {
    const std::size_t padded = (cols + lanes - 1) / lanes * lanes;
    const unsigned bits = m.bits <= 44 ? 11 : 12;
    const i64 half = i64{1} << (bits - 1);
    words.assign(batch * kDigits * padded, 0);
    for (std::size_t t = 0; t < batch; ++t)
        for (std::size_t i = 0; i < cols; ++i) {
            const u64 v = x[t * cols + i], above = u64{0} - ((m.q / 2 - v) >> 63);
            i64 rest = static_cast<i64>(v - (m.q & above));
            for (std::size_t d = 0; d < kDigits; ++d) {
                const i64 digit = d + 1 < kDigits ? ((rest + half) & (2 * half - 1)) - half : rest;
                words[(t * kDigits + d) * padded + i] = static_cast<std::int16_t>(digit);
                rest = (rest - digit) >> bits;
            }
        }
    return {padded, bits, words.data()};
}

// The two 24-bit halves of x have separate signed sums: |w| <= 2^15, so 2^17 columns stay below 2^63.
void field_matvec_portable(const Modulus& m, const std::int16_t* w, const u64* x, u64* out, std::size_t rows,
                           std::size_t cols, std::size_t batch, std::size_t begin, std::size_t end) {
    const u64 two24 = u64{1} << 24, lift = m.q * ((u64{1} << 62) / m.q);
    for (std::size_t t = 0; t < batch; ++t)
        for (std::size_t o = begin; o < end; ++o) {
            const std::int16_t* row = w + o * cols;
            const u64* v = x + t * cols;
            i64 low = 0, high = 0;
            for (std::size_t i = 0; i < cols; ++i) {
                low += i64{row[i]} * static_cast<i64>(v[i] & (two24 - 1));
                high += i64{row[i]} * static_cast<i64>(v[i] >> 24);
            }
            // A multiple of p makes both sums non-negative.
            const u64 l = m.reduce64(static_cast<u64>(low) + lift), h = m.reduce64(static_cast<u64>(high) + lift);
            out[t * rows + o] = m.reduce128(u128{h} * two24 + l);
        }
}
