build:
	@mkdir -p build
	@flock build/.lock sh -c '.venv/bin/cmake -S . -B build/cmake -G Ninja -DPython_EXECUTABLE=$(CURDIR)/.venv/bin/python -DMEGACORE_TESTS=ON -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja >build/configure.log 2>&1 || { cat build/configure.log; exit 1; }; .venv/bin/cmake --build build/cmake'
	@echo $(CURDIR)/python > .venv/lib/python3.11/site-packages/megacore-dev.pth
.PHONY: build
