/// The item types of an indexed dataset and their codes in the .idx file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace megacore::data {

/// Values are the dtype codes of the file format.
enum class TokenType : std::uint8_t {
    kUInt8 = 1,
    kInt8 = 2,
    kInt16 = 3,
    kInt32 = 4,
    kInt64 = 5,
    kFloat64 = 6,
    kFloat32 = 7,
    kUInt16 = 8,
};

/// Whether `code` is one of the dtype codes.
constexpr bool is_token_type(std::uint8_t code) { return code >= 1 && code <= 8; }

/// Bytes per item.
constexpr std::int64_t item_size(TokenType type) {
    switch (type) {
        case TokenType::kUInt8:
        case TokenType::kInt8:
            return 1;
        case TokenType::kInt16:
        case TokenType::kUInt16:
            return 2;
        case TokenType::kInt32:
        case TokenType::kFloat32:
            return 4;
        case TokenType::kInt64:
        case TokenType::kFloat64:
            return 8;
    }
    return 0;
}

/// The numpy name of the type, for messages and for the bindings.
constexpr std::string_view type_name(TokenType type) {
    switch (type) {
        case TokenType::kUInt8:
            return "uint8";
        case TokenType::kInt8:
            return "int8";
        case TokenType::kInt16:
            return "int16";
        case TokenType::kInt32:
            return "int32";
        case TokenType::kInt64:
            return "int64";
        case TokenType::kFloat64:
            return "float64";
        case TokenType::kFloat32:
            return "float32";
        case TokenType::kUInt16:
            return "uint16";
    }
    return "unknown";
}

}  // namespace megacore::data
