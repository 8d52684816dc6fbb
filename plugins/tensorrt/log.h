// Errors of the plugins. Inside a plugin a mistake is an exception with its text; `guarded` stands at every
// entry that TensorRT calls, gives the text to TensorRT's logger and answers with the value that says
// "failed".
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

#include <NvInferRuntime.h>

namespace turbo {

namespace trt = nvinfer1;

// What TensorRT gave to find the logger of the calling thread; null before.
void setLogger(trt::ILoggerFinder* finder) noexcept;

// Writes "op: text" as an error to TensorRT's logger, or to the standard error stream where there is none.
void logError(char const* op, char const* text) noexcept;

[[noreturn]] inline void fail(std::string const& text) { throw std::runtime_error(text); }

template <class Result, class Body>
Result guarded(char const* op, Result failed, Body&& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        logError(op, error.what());
    } catch (...) {
        logError(op, "unknown exception");
    }
    return failed;
}

}  // namespace turbo
