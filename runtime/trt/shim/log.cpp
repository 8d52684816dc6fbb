#include "log.h"

#include <exception>

#include "error.h"

namespace turbo {
namespace {

// A verbose build writes hundreds of thousands of lines; the last ones say why it failed.
constexpr size_t kMostLines = 20000;

int32_t levelOf(nvinfer1::ILogger::Severity severity) {
    using Severity = nvinfer1::ILogger::Severity;
    switch (severity) {
        case Severity::kINTERNAL_ERROR:
        case Severity::kERROR: return kTurboTrtError;
        case Severity::kWARNING: return kTurboTrtWarning;
        case Severity::kINFO: return kTurboTrtInfo;
        case Severity::kVERBOSE: return kTurboTrtVerbose;
    }
    return kTurboTrtVerbose;
}

}  // namespace

void Logger::log(Severity severity, char const* text) noexcept {
    int32_t const level = levelOf(severity);
    try {
        std::lock_guard<std::mutex> const lock(mMutex);
        if (level > mLevel) return;
        if (mLines.size() == kMostLines) mLines.pop_front();
        mLines.push_back({level, orEmpty(text)});
    } catch (std::exception const&) {
        // A lost line is better than a lost process.
    }
}

void Logger::setLevel(int32_t level) {
    std::lock_guard<std::mutex> const lock(mMutex);
    mLevel = level;
}

std::deque<Logger::Line> Logger::take() {
    std::lock_guard<std::mutex> const lock(mMutex);
    std::deque<Line> lines;
    lines.swap(mLines);
    return lines;
}

Logger& logger() {
    static Logger* const instance = new Logger;
    return *instance;
}

}  // namespace turbo

void turbo_trt_log_level(int32_t level) {
    (void)turbo::guarded([&] {
        turbo::logger().setLevel(level);
        return kTurboTrtOk;
    });
}

void turbo_trt_log_take(TurboTrtLineFn line, void* user) {
    (void)turbo::guarded([&] {
        for (auto const& kept : turbo::logger().take()) line(user, kept.level, kept.text.c_str());
        return kTurboTrtOk;
    });
}
