// A kernel that runs until the host lets it go, so that a test knows that a
// stream is busy without counting on how long a kernel takes.
//
// There is one gate a process, in host memory that kernels read. It is open at
// first. A kernel behind a closed gate ends by itself after 20 s: a test that
// went wrong leaves no GPU busy.
#pragma once

#include <cuda_runtime.h>

// Makes the gate, which no capture allows. False where CUDA refuses.
bool MakeHold();

// On the current device, for any of its streams. After MakeHold().
cudaError_t LaunchHold(cudaStream_t stream);
