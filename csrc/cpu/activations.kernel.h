// Sigmoid and tanh of vectors, right to a few units in the last place over the whole range: small arguments keep their
// relative precision, large ones saturate, tiny results become denormal before they vanish, and NaN stays NaN. Compiled
// once per ISA tier, on the vectors that were included before.

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

template <typename A>
struct Exp;

// e^y = 2^n e^r with |r| <= ln(2) / 2. `kRound` makes a sum an integer; ln(2) is cut in two, so that n times the first
// part is exact; the series ends where its terms do not count any more.
template <>
struct Exp<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kRound = 0x1.8p23f, kInverse = 0x1.715476p+0f;
  static constexpr float kLn2 = 0x1.62e4p-1f, kLn2Rest = 0x1.7f7d1cp-20f;
  static constexpr float kLowest = -104.0f, kTanhLowest = -40.0f;  // where exp(y) is 0, and exp(y) - 1 is -1
};

template <>
struct Exp<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 12;
  static constexpr double kRound = 0x1.8p52, kInverse = 0x1.71547652b82fep+0;
  static constexpr double kLn2 = 0x1.62e42fefa38p-1, kLn2Rest = 0x1.ef35793c7673p-45;
  static constexpr double kLowest = -746.0, kTanhLowest = -80.0;
};

// 1/2!, 1/3!, ...: of the series (e^r - 1 - r) / r^2.
template <typename A>
constexpr A inverse_factorial(int n) {
  A value = 1;
  for (int i = 2; i <= n; ++i) value /= static_cast<A>(i);
  return value;
}

template <typename A>
inline __attribute__((always_inline)) Vec<A> select(Vec<typename Exp<A>::Int> mask, Vec<A> a, Vec<A> b) {
  using Ints = Vec<typename Exp<A>::Int>;
  return (Vec<A>)((mask & (Ints)a) | (~mask & (Ints)b));
}

// 2^n, where that is a normal number.
template <typename A>
inline __attribute__((always_inline)) Vec<A> power_of_two(Vec<typename Exp<A>::Int> n) {
  return (Vec<A>)((n + Exp<A>::kBias) << Exp<A>::kMantissa);
}

// e^r - 1; n is where y is 2^n e^r.
template <typename A>
inline __attribute__((always_inline)) Vec<A> reduced_expm1(Vec<A> y, Vec<typename Exp<A>::Int>* n) {
  using Ints = Vec<typename Exp<A>::Int>;
  const Vec<A> shifted = y * Exp<A>::kInverse + Exp<A>::kRound;
  *n = (Ints)shifted - (Ints)(broadcast<Vec<A>>(Exp<A>::kRound));
  const Vec<A> whole = shifted - Exp<A>::kRound;
  const Vec<A> r = (y - whole * Exp<A>::kLn2) - whole * Exp<A>::kLn2Rest;
  Vec<A> series = broadcast<Vec<A>>(inverse_factorial<A>(Exp<A>::kTerms + 1));
  SNIPKERN_UNROLL for (int term = Exp<A>::kTerms; term >= 2; --term) {
    series = multiply_add<A>(series, r, broadcast<Vec<A>>(inverse_factorial<A>(term)));
  }
  return multiply_add<A>(r * r, series, r);
}

template <typename A>
inline __attribute__((always_inline)) Vec<A> magnitude(Vec<A> x, Vec<typename Exp<A>::Int>* sign) {
  using Ints = Vec<typename Exp<A>::Int>;
  *sign = (Ints)x & (Ints)broadcast<Vec<A>>(static_cast<A>(-0.0));
  return (Vec<A>)((Ints)x ^ *sign);
}

template <typename A>
inline __attribute__((always_inline)) Vec<A> sigmoid(Vec<A> x) {
  Vec<typename Exp<A>::Int> sign, n;
  const Vec<A> given = -magnitude<A>(x, &sign);
  const Vec<A> lowest = broadcast<Vec<A>>(Exp<A>::kLowest);
  const Vec<A> rest = reduced_expm1<A>(select<A>(given < lowest, lowest, given), &n);
  // In two factors: the power alone may be too small for a normal number.
  const auto half = n >> 1;
  const Vec<A> exp = (rest + static_cast<A>(1)) * power_of_two<A>(half) * power_of_two<A>(n - half);
  const Vec<A> one = broadcast<Vec<A>>(static_cast<A>(1));
  return select<A>(x < Vec<A>{}, exp, one) / (exp + one);
}

// By e^-2|x| - 1, which small arguments take from the series alone.
template <typename A>
inline __attribute__((always_inline)) Vec<A> tanh(Vec<A> x) {
  using Ints = Vec<typename Exp<A>::Int>;
  Ints sign, n;
  const Vec<A> given = magnitude<A>(x, &sign) * static_cast<A>(-2);
  const Vec<A> lowest = broadcast<Vec<A>>(Exp<A>::kTanhLowest);
  const Vec<A> rest = reduced_expm1<A>(select<A>(given < lowest, lowest, given), &n);
  const Vec<A> scale = power_of_two<A>(n);
  const Vec<A> expm1 = multiply_add<A>(scale, rest, scale - static_cast<A>(1));
  Ints unused;
  return (Vec<A>)((Ints)magnitude<A>(expm1 / (expm1 + static_cast<A>(2)), &unused) | sign);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
