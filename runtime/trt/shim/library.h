// The TensorRT libraries of this process, loaded at run time.
#pragma once

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <cstdint>
#include <string>

#include "turbo_trt.h"

struct TurboTrtLibrary {
    std::string path;
    int32_t version = 0;
    void* (*createBuilder)(void* logger, int32_t version) = nullptr;
    void* (*createRuntime)(void* logger, int32_t version) = nullptr;
    void* (*createRefitter)(void* engine, void* logger, int32_t version) = nullptr;
    // Null until the parser is opened.
    void* (*createParser)(void* network, void* logger, int version) = nullptr;

    // What the create functions are told. An older library hears its own version: of what the headers have
    // beyond it, nothing is used without a look at `version`.
    int32_t asked() const { return version < NV_TENSORRT_VERSION ? version : int32_t{NV_TENSORRT_VERSION}; }
};
