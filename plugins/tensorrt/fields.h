// Attributes of an op as TensorRT's plugin fields. The ONNX parser gives an INT as kINT32, a FLOAT as kFLOAT32
// and a STRING as kCHAR with its terminating NUL. The plan keeps the same fields and gives them back at run time.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "log.h"
#include "turbo_traits.h"

namespace turbo {

// Fields that point into the attributes they were made of.
struct FieldWriter {
    std::vector<trt::PluginField> fields;

    void operator()(char const* name, int32_t& value) {
        fields.emplace_back(name, &value, trt::PluginFieldType::kINT32, 1);
    }
    void operator()(char const* name, float& value) {
        fields.emplace_back(name, &value, trt::PluginFieldType::kFLOAT32, 1);
    }
    void operator()(char const* name, Word& value, std::initializer_list<char const*> words) {
        char const* const word = words.begin()[value.index];
        int32_t const length = static_cast<int32_t>(std::strlen(word)) + 1;
        fields.emplace_back(name, word, trt::PluginFieldType::kCHAR, length);
    }
};

template <class Attrs>
std::vector<trt::PluginField> fieldsOf(Attrs& attrs) {
    FieldWriter writer;
    attrs.visit(writer);
    return std::move(writer.fields);
}

// Attributes from fields. A missing field, another type or a value that is not allowed is an error.
struct FieldReader {
    trt::PluginFieldCollection const& given;

    void operator()(char const* name, int32_t& value) const {
        auto const* const field = find(name, trt::PluginFieldType::kINT32);
        if (field) std::memcpy(&value, field->data, sizeof value);
        if (!field || value < 1) refuse(name, "a positive integer");
    }
    void operator()(char const* name, float& value) const {
        auto const* const field = find(name, trt::PluginFieldType::kFLOAT32);
        if (field) std::memcpy(&value, field->data, sizeof value);
        if (!field || !std::isfinite(value)) refuse(name, "a finite float");
    }
    void operator()(char const* name, Word& value, std::initializer_list<char const*> words) const {
        auto const* const field = find(name, trt::PluginFieldType::kCHAR);
        std::string const found = field ? text(*field) : std::string();
        std::string expected = "one of";
        value.index = 0;
        for (char const* word : words) {
            if (field && found == word) return;
            expected += std::string(value.index ? ", " : " ") + word;
            ++value.index;
        }
        refuse(name, expected);
    }

private:
    static std::string text(trt::PluginField const& field) {
        auto const* const chars = static_cast<char const*>(field.data);
        return std::string(chars, strnlen(chars, static_cast<size_t>(field.length)));
    }

    trt::PluginField const* find(char const* name) const {
        for (int32_t i = 0; i < given.nbFields; ++i) {
            auto const& field = given.fields[i];
            if (field.name && std::strcmp(field.name, name) == 0) return &field;
        }
        return nullptr;
    }

    // The field if it has this type and one value, or for text at least one byte.
    trt::PluginField const* find(char const* name, trt::PluginFieldType type) const {
        auto const* const field = find(name);
        bool const isText = type == trt::PluginFieldType::kCHAR;
        bool const fits = field && field->data && field->type == type &&
                          (isText ? field->length > 0 : field->length == 1);
        return fits ? field : nullptr;
    }

    [[noreturn]] void refuse(char const* name, std::string const& expected) const {
        fail(std::string("attribute ") + name + ": expected " + expected + ", found " + describe(find(name)));
    }

    static std::string describe(trt::PluginField const* field) {
        using trt::PluginFieldType;
        if (!field || !field->data) return "none";
        if (field->length == 1 && field->type == PluginFieldType::kINT32) {
            int32_t value = 0;
            std::memcpy(&value, field->data, sizeof value);
            return "the integer " + std::to_string(value);
        }
        if (field->length == 1 && field->type == PluginFieldType::kFLOAT32) {
            float value = 0;
            std::memcpy(&value, field->data, sizeof value);
            return "the float " + std::to_string(value);
        }
        if (field->length > 0 && field->type == PluginFieldType::kCHAR) return "\"" + text(*field) + "\"";
        return std::to_string(field->length) + " values of PluginFieldType " +
               std::to_string(static_cast<int32_t>(field->type));
    }
};

}  // namespace turbo
