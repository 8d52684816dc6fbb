// TensorRT's log as lines that the caller takes.
#pragma once

#include <NvInfer.h>

#include <deque>
#include <mutex>
#include <string>

#include "turbo_trt.h"

namespace turbo {

class Logger final : public nvinfer1::ILogger {
public:
    struct Line {
        int32_t level;
        std::string text;
    };

    void log(Severity severity, char const* text) noexcept override;
    void setLevel(int32_t level);
    std::deque<Line> take();

private:
    std::mutex mMutex;
    std::deque<Line> mLines;
    int32_t mLevel = kTurboTrtWarning;
};

// TensorRT keeps the first logger that it is given, and may still write when the process ends: this one is
// never destroyed.
Logger& logger();

}  // namespace turbo
