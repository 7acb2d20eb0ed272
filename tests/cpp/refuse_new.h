// A host that has no memory left: operator new, replaced for the whole test
// program, refuses where a test asks for it.
//
//   for (Refusals refusals; refusals.Next();) {
//     Arena arena(&source, limit);
//     refusals.During([&] { arena.Allocate(1); });
//     CHECK_EQ(arena.CheckInvariants().value_or(""), "");
//   }
//
// The first round refuses the first allocation of what runs in During, the
// second round the second, and so on; the last is the first round in which
// nothing was left to refuse. What runs outside of During is never refused, nor
// is another thread.
//
// Include it in one file of a program: it defines the operators.
#ifndef JAX_BFC_TESTS_CPP_REFUSE_NEW_H_
#define JAX_BFC_TESTS_CPP_REFUSE_NEW_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

#include "new_plan.h"

namespace jax_bfc::testing {

inline bool RefusesNew() noexcept {
  if (new_plan.pass > 0) {
    --new_plan.pass;
    return false;
  }
  if (new_plan.refuse == 0) return false;
  --new_plan.refuse;
  ++new_plan.refused;
  return true;
}

// Runs `body` while this thread's operator new passes `pass` allocations and
// then refuses `refuse`; how many it did refuse.
template <typename Body>
uint64_t WithNewPlan(NewPlan plan, NewPlan* left, Body body) {
  struct Restore {
    NewPlan* left;
    ~Restore() {
      *left = new_plan;
      new_plan = NewPlan();
    }
  } restore{left};
  plan.refused = 0;
  new_plan = plan;
  body();
  return new_plan.refused;
}

// Every allocation of `body` is refused; how many there were.
template <typename Body>
uint64_t RefuseAll(Body body) {
  NewPlan left;
  return WithNewPlan({.pass = 0, .refuse = ~uint64_t{0}}, &left, body);
}

class Refusals {
 public:
  // Each round refuses `in_a_row` allocations, the round's own first.
  explicit Refusals(uint64_t in_a_row = 1) : in_a_row_(in_a_row) {}

  // Starts the next round; false when the last one refused nothing.
  bool Next() {
    if (round_ > 0 && !refused_) return false;
    plan_ = {.pass = round_++, .refuse = in_a_row_};
    refused_ = false;
    return true;
  }

  // Runs a part of the round; whether an allocation was refused in it.
  template <typename Body>
  bool During(Body body) {
    const bool refused = WithNewPlan(plan_, &plan_, body) > 0;
    refused_ = refused_ || refused;
    return refused;
  }

  // Whether this round has refused an allocation yet.
  bool refused() const { return refused_; }
  uint64_t rounds() const { return round_; }

 private:
  const uint64_t in_a_row_;
  uint64_t round_ = 0;
  bool refused_ = false;
  NewPlan plan_;
};

// Not inlined, so that the compiler does not take a new and its free for a pair
// that do not belong together.
[[gnu::noinline]] inline void* NewOrNull(size_t bytes,
                                         size_t alignment) noexcept {
  if (RefusesNew()) return nullptr;
  if (bytes == 0) bytes = 1;
  if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__) return std::malloc(bytes);
  return std::aligned_alloc(alignment,
                            (bytes + alignment - 1) / alignment * alignment);
}
[[gnu::noinline]] inline void* New(size_t bytes, size_t alignment) {
  void* const memory = NewOrNull(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] inline void Delete(void* memory) noexcept {
  std::free(memory);
}

}  // namespace jax_bfc::testing

// All forms: a sanitizer has each of its own, and they do not mix.
void* operator new(size_t n) { return jax_bfc::testing::New(n, 1); }
void* operator new[](size_t n) { return jax_bfc::testing::New(n, 1); }
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return jax_bfc::testing::NewOrNull(n, 1);
}
void* operator new[](size_t n, const std::nothrow_t&) noexcept {
  return jax_bfc::testing::NewOrNull(n, 1);
}
void* operator new(size_t n, std::align_val_t a) {
  return jax_bfc::testing::New(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a) {
  return jax_bfc::testing::New(n, static_cast<size_t>(a));
}
void* operator new(size_t n, std::align_val_t a,
                   const std::nothrow_t&) noexcept {
  return jax_bfc::testing::NewOrNull(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a,
                     const std::nothrow_t&) noexcept {
  return jax_bfc::testing::NewOrNull(n, static_cast<size_t>(a));
}
void operator delete(void* p) noexcept { jax_bfc::testing::Delete(p); }
void operator delete[](void* p) noexcept { jax_bfc::testing::Delete(p); }
void operator delete(void* p, size_t) noexcept { jax_bfc::testing::Delete(p); }
void operator delete[](void* p, size_t) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete[](void* p, const std::nothrow_t&) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete[](void* p, size_t, std::align_val_t) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete(void* p, std::align_val_t,
                     const std::nothrow_t&) noexcept {
  jax_bfc::testing::Delete(p);
}
void operator delete[](void* p, std::align_val_t,
                       const std::nothrow_t&) noexcept {
  jax_bfc::testing::Delete(p);
}

#endif  // JAX_BFC_TESTS_CPP_REFUSE_NEW_H_
