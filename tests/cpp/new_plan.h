// What a test asks of operator new, see refuse_new.h. Apart from it, so that what
// stands for the system in a test can keep out of it.
#ifndef JAX_BFC_TESTS_CPP_NEW_PLAN_H_
#define JAX_BFC_TESTS_CPP_NEW_PLAN_H_

#include <cstdint>
#include <limits>
#include <utility>

namespace jax_bfc::testing {

// What operator new does on this thread: passes so many, then refuses so many.
struct NewPlan {
  uint64_t pass = std::numeric_limits<uint64_t>::max();
  uint64_t refuse = 0;
  uint64_t refused = 0;  // so far
};
inline thread_local NewPlan new_plan;

// While one exists, this thread's allocations are neither counted nor refused.
class NoneRefused {
 public:
  NoneRefused() : plan_(std::exchange(new_plan, NewPlan())) {}
  ~NoneRefused() { new_plan = plan_; }
  NoneRefused(const NoneRefused&) = delete;
  NoneRefused& operator=(const NoneRefused&) = delete;

 private:
  const NewPlan plan_;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_NEW_PLAN_H_
