// Reads /proc/self/exe once.
#include "runtime/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace cuda_emulation {
namespace {

struct Function {
    std::uint64_t address;  // relative to the image
    std::uint64_t size;
    std::string mangled;
};

struct Tables {
    std::vector<Function> functions;
    std::vector<ThreadLocalSymbol> thread_locals;
};

std::string demangle(const std::string& mangled) {
    int status = 0;
    char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    std::string name = status == 0 ? text : mangled;
    std::free(text);
    return name;
}

// "smem" of "kernel(float*)::smem": what follows the last :: outside of brackets.
std::string last_part(const std::string& name) {
    int depth = 0;
    for (std::size_t i = name.size(); i-- > 1;) {
        if (name[i] == ')' || name[i] == '>') ++depth;
        if (name[i] == '(' || name[i] == '<') --depth;
        if (depth == 0 && name[i] == ':' && name[i - 1] == ':') return name.substr(i + 1);
    }
    return name;
}

Tables read_tables() {
    Tables tables;
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::string image{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (image.size() < sizeof(Elf64_Ehdr) || image.compare(0, 4, ELFMAG) != 0) return tables;
    Elf64_Ehdr header;
    std::memcpy(&header, image.data(), sizeof(header));
    std::vector<Elf64_Shdr> sections(header.e_shnum);
    std::memcpy(
        sections.data(), image.data() + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
    for (const Elf64_Shdr& section : sections) {
        if (section.sh_type != SHT_SYMTAB) continue;
        const char* names = image.data() + sections[section.sh_link].sh_offset;
        for (std::uint64_t at = 0; at < section.sh_size; at += sizeof(Elf64_Sym)) {
            Elf64_Sym symbol;
            std::memcpy(&symbol, image.data() + section.sh_offset + at, sizeof(symbol));
            if (symbol.st_shndx == SHN_UNDEF) continue;
            const std::string name = names + symbol.st_name;
            const int type = ELF64_ST_TYPE(symbol.st_info);
            if (type == STT_FUNC) {
                tables.functions.push_back({symbol.st_value, symbol.st_size, name});
            } else if (type == STT_TLS && symbol.st_size > 0) {
                tables.thread_locals.push_back({symbol.st_value,
                                                symbol.st_size,
                                                last_part(demangle(name)),
                                                name.starts_with("_ZGV")});
            }
        }
    }
    std::sort(tables.functions.begin(), tables.functions.end(), [](const auto& a, const auto& b) {
        return a.address < b.address;
    });
    std::sort(tables.thread_locals.begin(),
              tables.thread_locals.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    return tables;
}

const Tables& tables() {
    static const Tables read = read_tables();
    return read;
}

}  // namespace

const std::vector<ThreadLocalSymbol>& thread_local_symbols() { return tables().thread_locals; }

const std::byte* image_base() {
    static const std::byte* const base = [] {
        std::uintptr_t found = 0;
        dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* data) {
                *static_cast<std::uintptr_t*>(data) = info->dlpi_addr;
                return 1;  // the first is the program itself
            },
            &found);
        return reinterpret_cast<const std::byte*>(found);
    }();
    return base;
}

std::string symbol_name(const void* address) {
    const auto offset =
        static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - image_base());
    const auto& functions = tables().functions;
    auto after = std::upper_bound(
        functions.begin(), functions.end(), offset, [](std::uint64_t value, const Function& f) {
            return value < f.address;
        });
    if (after != functions.begin()) {
        --after;
        if (offset < after->address + std::max<std::uint64_t>(after->size, 1)) {
            return demangle(after->mangled);
        }
    }
    char text[32];
    std::snprintf(text, sizeof(text), "at %p", address);
    return text;
}

bool in_loaded_image(const void* address) {
    Dl_info info;
    return dladdr(address, &info) != 0;
}

}  // namespace cuda_emulation
