"""The primes that everything above agrees on.

P_FIELD is the field of the secret shares and the plaintext modulus of the SIMD parameter set: 43 bits, ≡ 1 mod 2^15 (so
that it has slots up to N = 16384, and so that p mod 2^f = 1 for f ≤ 15, which makes rescaling unbiased).
P_SMALL is the field of small table look-ups.
"""

P_FIELD = 8796092858369  # 2^43 - 163839
P_SMALL = 268369921  # 2^28 - 65535

# Ciphertext primes of the SIMD set, 50 bits each and ≡ 1 mod 2^15: below 2^50, so that lazy butterflies fit 52-bit words.
SIMD_PRIMES = (1125899904679937, 1125899903991809, 1125899903827969)
