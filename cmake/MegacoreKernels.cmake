# The kernel library. Every csrc/kernels/<op>_cpu.cpp is compiled once per instruction set into its
# own namespace (MEGACORE_ISA); <op>.cpp picks one at run time. The build itself targets the portable
# baseline of the architecture, so one binary runs on every CPU of its kind.

file(GLOB MEGACORE_KERNEL_CPU CONFIGURE_DEPENDS csrc/kernels/*_cpu.cpp)
file(GLOB MEGACORE_KERNEL_HOST CONFIGURE_DEPENDS csrc/kernels/*.cpp)
file(GLOB MEGACORE_KERNEL_CUDA CONFIGURE_DEPENDS csrc/kernels/*.cu)
if(MEGACORE_KERNEL_CPU)
    list(REMOVE_ITEM MEGACORE_KERNEL_HOST ${MEGACORE_KERNEL_CPU})
endif()

set(MEGACORE_ISA_OBJECTS "")
function(megacore_isa name)
    add_library(megacore_isa_${name} OBJECT ${MEGACORE_KERNEL_CPU})
    target_link_libraries(megacore_isa_${name} PRIVATE megacore_options)
    target_include_directories(megacore_isa_${name} PRIVATE csrc)
    target_compile_definitions(megacore_isa_${name} PRIVATE MEGACORE_ISA=${name})
    target_compile_options(megacore_isa_${name} PRIVATE ${ARGN})
    set(MEGACORE_ISA_OBJECTS ${MEGACORE_ISA_OBJECTS} $<TARGET_OBJECTS:megacore_isa_${name}>
        PARENT_SCOPE)
endfunction()

if(MEGACORE_KERNEL_CPU)
    # The baseline comes first: where an inline function is emitted by several of these objects,
    # the linker keeps the first, which every CPU can run.
    megacore_isa(baseline)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        megacore_isa(avx2 -mavx2 -mfma -mf16c)
        megacore_isa(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
            -Wno-uninitialized)
        set(x86_isas MEGACORE_X86_ISAS=1)
    endif()
endif()

if(MEGACORE_KERNEL_HOST OR MEGACORE_KERNEL_CPU)
    add_library(megacore_kernels STATIC ${MEGACORE_ISA_OBJECTS} ${MEGACORE_KERNEL_HOST})
    target_link_libraries(megacore_kernels PUBLIC megacore_core)
    target_compile_definitions(megacore_kernels PRIVATE ${x86_isas})
else()
    add_library(megacore_kernels INTERFACE)
    target_link_libraries(megacore_kernels INTERFACE megacore_core)
endif()

if(MEGACORE_USE_CUDA AND MEGACORE_KERNEL_CUDA)
    option(MEGACORE_PTXAS_REPORT "Print registers, spills and shared memory of each kernel" OFF)
    add_library(megacore_cuda_kernels STATIC ${MEGACORE_KERNEL_CUDA})
    target_link_libraries(megacore_cuda_kernels PUBLIC megacore_kernels CUDA::cudart_static)
    if(MEGACORE_PTXAS_REPORT)
        target_compile_options(megacore_cuda_kernels PRIVATE -Xptxas=-v)
    endif()
endif()
