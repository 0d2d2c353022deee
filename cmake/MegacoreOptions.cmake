# Compiler settings shared by every target, and where the built products are written.

set(MEGACORE_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: AUTO (nvcc and a CUDA torch), ON, OFF")
set_property(CACHE MEGACORE_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT MEGACORE_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "MEGACORE_CUDA must be AUTO, ON or OFF, found '${MEGACORE_CUDA}'")
endif()
option(MEGACORE_TESTS "Build the C++ tests (needs GoogleTest)" OFF)
set(MEGACORE_OUTPUT_DIR "${CMAKE_CURRENT_SOURCE_DIR}/python/megacore" CACHE PATH
    "Folder that receives _C and _ops")

if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
# Line tables only: profilers and core dumps resolve to a line, links stay quick.
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -g1 -DNDEBUG")
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(MEGACORE_CCACHE ccache)
if(MEGACORE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${MEGACORE_CCACHE}")
endif()

find_package(Threads REQUIRED)

add_library(megacore_options INTERFACE)
target_compile_options(megacore_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -fno-math-errno -ffp-contract=off>
    # GCC 12 warns about the deliberately undefined registers in its own vector intrinsics.
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized>)

# Registers `target` as a product: it lands in MEGACORE_OUTPUT_DIR.
function(megacore_product target)
    set_target_properties(${target} PROPERTIES
        LIBRARY_OUTPUT_DIRECTORY "${MEGACORE_OUTPUT_DIR}"
        BUILD_WITH_INSTALL_RPATH ON
        INSTALL_RPATH "")
endfunction()
