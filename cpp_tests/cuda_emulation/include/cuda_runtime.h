/// Stands in for CUDA's header of this name when a .cu file is compiled as C++ by g++.
#pragma once

#include "cuda_emulation/atomics.h"
#include "cuda_emulation/device.h"
#include "cuda_emulation/keywords.h"
#include "cuda_emulation/math_functions.h"
#include "cuda_emulation/runtime_api.h"
#include "cuda_emulation/vector_types.h"
