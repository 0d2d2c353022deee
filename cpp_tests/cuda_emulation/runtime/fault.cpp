// Words of a fault, and the way out of a fiber that has failed.
#include "runtime/fault.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "runtime/emulator.h"
#include "runtime/memory.h"
#include "runtime/symbols.h"

namespace cuda_emulation {
namespace {

// The last two parts of a path say enough.
std::string short_path(const std::string& path) {
    std::size_t slash = path.rfind('/');
    if (slash == std::string::npos || slash == 0) return path;
    slash = path.rfind('/', slash - 1);
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string coordinates(const uint3& at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
           ")";
}

}  // namespace

void fail(const std::string& what, const std::string& details) {
    Machine& m = machine();
    if (m.running == nullptr) throw Fault("CUDA fault on the host: " + what + "\n" + details);
    m.fault = "CUDA fault: " + what + "\n  kernel " + symbol_name(m.kernel) + "\n  block " +
              coordinates(m.block_index) + ", " + describe_thread(m, m.running->linear) + "\n" +
              details;
    Fiber& self = *m.running;
    m.running = nullptr;
    switch_context(self.context, m.host);
    std::terminate();  // a failed fiber was continued
}

void trap(Site site) {
    const Inside inside;
    fail("trap", "  at " + describe(site) + "\n");
}

std::string describe(Site site) {
    if (site.file == nullptr) return "an unknown line";
    return short_path(site.file) + ":" + std::to_string(site.line);
}

std::string describe_code(const void* pc) {
    // addr2line comes with the assembler that g++ needs. Minus one: the call, not what follows it.
    const auto offset = static_cast<const std::byte*>(pc) - image_base() - 1;
    char command[128];
    std::snprintf(command,
                  sizeof(command),
                  "addr2line -i -e /proc/%d/exe 0x%zx 2>/dev/null",
                  static_cast<int>(getpid()),
                  static_cast<std::size_t>(offset));
    std::string text;
    if (FILE* pipe = popen(command, "r")) {
        char line[4096];
        for (int shown = 0; std::fgets(line, sizeof(line), pipe) != nullptr;) {
            line[std::strcspn(line, " \n")] = '\0';
            if (line[0] == '?' || shown >= 4) continue;
            if (shown++ > 0) text += ", inlined into ";
            text += short_path(line);
        }
        pclose(pipe);
    }
    if (!text.empty()) return text;
    std::snprintf(command, sizeof(command), "instruction +0x%zx", static_cast<std::size_t>(offset));
    return command;
}

std::string describe_thread(const Machine& m, std::uint32_t linear) {
    return "thread " + coordinates(m.fibers[linear].index);
}

}  // namespace cuda_emulation
