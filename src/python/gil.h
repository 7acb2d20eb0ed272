// Releases or takes the interpreter's lock for a scope.
//
// Up to Python 3.13 a daemon thread that wants the lock while the
// interpreter ends is ended by pthread_exit, which unwinds the stack; that
// would go through nanobind's frames, which let nothing through, and abort the
// process. Such a thread waits here for the end of the process instead, as
// Python 3.14 has it.
#ifndef JAX_BFC_PYTHON_GIL_H_
#define JAX_BFC_PYTHON_GIL_H_

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace jax_bfc {

class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      for (;;) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* const state_;
};

// REQUIRES: no lock of ours is held. It does not matter whether this thread has
// the interpreter's already, or whether Python knows the thread.
class GilAcquire {
 public:
  GilAcquire() : state_(Ensure()) {}
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;

 private:
  static PyGILState_STATE Ensure() {
    try {
      return PyGILState_Ensure();
    } catch (const abi::__forced_unwind&) {
      for (;;) pause();
    }
  }
  const PyGILState_STATE state_;
};

// Calls `function`, which calls Python, from a thread of whatever kind. What it
// raises is its own to deal with; the thread's own exception is kept. Nothing
// once the interpreter is gone.
// REQUIRES: as GilAcquire.
template <typename Function>
void CallPython(Function&& function) {
  if (Py_IsInitialized() == 0) return;
  const GilAcquire acquire;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  try {
    function();
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();  // Python ends the thread in the middle of it
  }
  PyErr_Restore(type, value, traceback);
}

}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_GIL_H_
