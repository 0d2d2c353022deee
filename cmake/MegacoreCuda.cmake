# Decides whether the CUDA kernels are built: sets MEGACORE_USE_CUDA and enables the language.

set(MEGACORE_USE_CUDA OFF)
if(NOT MEGACORE_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER AND (MEGACORE_TORCH_CUDA OR MEGACORE_CUDA STREQUAL "ON"))
        set(MEGACORE_USE_CUDA ON)
    elseif(MEGACORE_CUDA STREQUAL "ON")
        message(FATAL_ERROR "MEGACORE_CUDA=ON, but no CUDA compiler was found: put nvcc on PATH, "
                            "or set CMAKE_CUDA_COMPILER, or use MEGACORE_CUDA=AUTO")
    endif()
endif()

if(MEGACORE_USE_CUDA)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    if(NOT CMAKE_CUDA_ARCHITECTURES OR CMAKE_CUDA_ARCHITECTURES STREQUAL "52"
       OR CMAKE_CUDA_ARCHITECTURES STREQUAL "75")
        set(CMAKE_CUDA_ARCHITECTURES 80 90a)
        if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
            list(APPEND CMAKE_CUDA_ARCHITECTURES 100a)
        endif()
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
endif()
message(STATUS "CUDA kernels: ${MEGACORE_USE_CUDA} (MEGACORE_CUDA=${MEGACORE_CUDA}) ${CMAKE_CUDA_ARCHITECTURES}")
