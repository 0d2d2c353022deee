# Writes the assembly that defines dynamic shared memory.
#
# `extern __shared__ T name[];` leaves an undefined thread-local symbol, whatever its namespace. This
# script lists those of the compiled sources and makes each of them another name of one arena.
#   cmake -DREADELF=... -DOBJECTS=a.o|b.o -DOUTPUT=dynamic_shared.cpp -P dynamic_shared.cmake
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
set(names cuda_emulation_dynamic_shared)
foreach(object IN LISTS OBJECTS)
    execute_process(COMMAND "${READELF}" --wide --symbols "${object}"
                    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "TLS +GLOBAL +[A-Z]+ +UND +[A-Za-z0-9_.$]+" undefined "${symbols}")
    foreach(line IN LISTS undefined)
        string(REGEX REPLACE ".* " "" name "${line}")
        # The thread-local variables of the C and C++ libraries are defined there.
        if(NOT name MATCHES "^(errno|_ZSt|_ZNSt|_ZN10__cxxabi|__)")
            list(APPEND names "${name}")
        endif()
    endforeach()
endforeach()
list(REMOVE_DUPLICATES names)

set(text "// Written by dynamic_shared.cmake: one place with the name of every dynamic shared array.\n")
string(APPEND text "asm(R\"(\n    .section .tbss.dynamic_shared,\"awT\",@nobits\n    .balign 1024\n")
foreach(name IN LISTS names)
    string(APPEND text "    .globl ${name}\n    .type ${name}, @object\n    .size ${name}, 232448\n"
                       "${name}:\n")
endforeach()
string(APPEND text "    .zero 232448\n    .text\n)\");\n")
file(WRITE "${OUTPUT}" "${text}")
