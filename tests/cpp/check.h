// A small test harness: tests register themselves, checks print their values.
//
//   TEST(FreeingTheMiddleJoinsBothNeighbours) { CHECK_EQ(2 + 2, 4); }
//
// A failing check ends its test; the others still run. main.cc has the command
// line: --list, test names, --seed.
//
// Not for death tests or parameterised tests: write a loop.
#ifndef JAX_BFC_TESTS_CPP_CHECK_H_
#define JAX_BFC_TESTS_CPP_CHECK_H_

#include <concepts>
#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace jax_bfc::testing {

struct Test {
  const char* name;
  void (*body)();
};

// All tests of this program, in the order of their definition in each file.
inline std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

struct Registration {
  Registration(const char* name, void (*body)()) {
    Tests().push_back({name, body});
  }
};

// What --seed or JAX_BFC_TEST_SEED gave.
inline std::optional<uint64_t>& SeedOption() {
  static std::optional<uint64_t> seed;
  return seed;
}

// The seeds that a random test runs: `defaults`, or the one that was asked for.
inline std::vector<uint64_t> Seeds(std::vector<uint64_t> defaults) {
  if (SeedOption()) return {*SeedOption()};
  return defaults;
}

// Thrown by a failing check, caught by main().
struct Failure {
  std::string text;
};

template <typename T>
concept Printable =
    requires(std::ostream& out, const T& value) { out << value; };

template <typename T>
std::string Print(const T& value) {
  std::ostringstream out;
  out << std::boolalpha;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<int64_t>(value);
  } else if constexpr (std::convertible_to<const T&, std::string>) {
    out << '"' << std::string(value) << '"';
  } else if constexpr (std::integral<T> && !std::same_as<T, bool>) {
    out << +value;
    // Addresses and sizes are easier to read in both bases.
    if (value > T{9}) out << " (0x" << std::hex << +value << ")";
  } else if constexpr (Printable<T>) {
    out << value;
  } else {
    out << "(" << sizeof(T) << " bytes)";
  }
  return out.str();
}

template <typename T>
std::string Print(const std::optional<T>& value) {
  return value ? Print(*value) : "nullopt";
}

[[noreturn]] inline void Fail(const char* file, int line,
                              const std::string& text) {
  throw Failure{std::string(file) + ":" + std::to_string(line) + ": " + text};
}

// Integers compare by value, whatever their signs; the rest as they do.
template <typename A, typename B>
bool Equal(const A& a, const B& b) {
  constexpr bool kIntegers = std::integral<A> && std::integral<B> &&
                             !std::same_as<A, bool> && !std::same_as<B, bool>;
  if constexpr (kIntegers) {
    return std::cmp_equal(a, b);
  } else {
    return a == b;
  }
}

template <typename A, typename B>
void CheckEqual(const char* file, int line, const char* text, const A& a,
                const B& b) {
  if (Equal(a, b)) return;
  Fail(file, line,
       std::string("CHECK_EQ(") + text + ")\n    is       " + Print(a) +
           "\n    expected " + Print(b));
}

}  // namespace jax_bfc::testing

#define TEST(name)                                                         \
  static void name();                                                      \
  static const ::jax_bfc::testing::Registration registration_##name(#name, \
                                                                    name); \
  static void name()

#define CHECK(...)                                                             \
  do {                                                                         \
    if (!(__VA_ARGS__)) {                                                      \
      ::jax_bfc::testing::Fail(__FILE__, __LINE__, "CHECK(" #__VA_ARGS__ ")"); \
    }                                                                          \
  } while (false)

// CHECK_EQ(actual, expected)
#define CHECK_EQ(...) \
  ::jax_bfc::testing::CheckEqual(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)

#endif  // JAX_BFC_TESTS_CPP_CHECK_H_
