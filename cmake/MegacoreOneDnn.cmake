# Chooses the file that stands for oneDNN behind kernels/gemm.h: sets MEGACORE_GEMM_ONEDNN and
# MEGACORE_ONEDNN_TARGET. Debian's libdnnl-dev is version 2; version 3 has another interface.

set(MEGACORE_GEMM_ONEDNN "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/gemm_onednn_absent.cpp")
set(MEGACORE_ONEDNN_TARGET "")
