// Finds the few C symbols of libnvinfer and libnvonnxparser. Everything else is reached through virtual
// functions, so the shim links neither.
#include "library.h"

#include <dlfcn.h>

#include <memory>

#include "error.h"

namespace turbo {
namespace {

// TensorRT 10.6 is the oldest that the shim was run with.
constexpr int32_t kOldest = NV_TENSORRT_MAJOR == 10 ? 100600 : NV_TENSORRT_MAJOR * 10000;

void* open(char const* file) {
    // Never closed: plugins, protobuf and TensorRT's own threads do not survive being unloaded.
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

int32_t notLoaded(char const* file) { return fail(kTurboTrtLibrary, file, orEmpty(dlerror())); }

template <class Function>
bool find(void* library, char const* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
}

int32_t lacks(char const* file, char const* name) {
    return fail(kTurboTrtLibrary, file, std::string("it does not export ") + name);
}

}  // namespace
}  // namespace turbo

int32_t turbo_trt_major(void) { return NV_TENSORRT_MAJOR; }

int32_t turbo_trt_library_open(char const* file, TurboTrtLibrary** out) {
    using namespace turbo;
    return guarded([&] {
        void* const handle = open(file);
        if (handle == nullptr) return notLoaded(file);
        auto library = std::make_unique<TurboTrtLibrary>();
        int32_t (*version)() = nullptr;
        if (!find(handle, "getInferLibVersion", version)) return lacks(file, "getInferLibVersion");
        library->version = version();
        if (library->version < kOldest || library->version / 10000 != NV_TENSORRT_MAJOR) {
            return fail(kTurboTrtVersion, file, std::to_string(library->version));
        }
        if (!find(handle, "createInferBuilder_INTERNAL", library->createBuilder)) {
            return lacks(file, "createInferBuilder_INTERNAL");
        }
        if (!find(handle, "createInferRuntime_INTERNAL", library->createRuntime)) {
            return lacks(file, "createInferRuntime_INTERNAL");
        }
        if (!find(handle, "createInferRefitter_INTERNAL", library->createRefitter)) {
            return lacks(file, "createInferRefitter_INTERNAL");
        }
        Dl_info found{};
        bool const known = dladdr(reinterpret_cast<void*>(version), &found) != 0;
        library->path = known && found.dli_fname != nullptr ? found.dli_fname : file;
        *out = library.release();
        return int32_t{kTurboTrtOk};
    });
}

int32_t turbo_trt_library_open_parser(TurboTrtLibrary* library, char const* file) {
    using namespace turbo;
    return guarded([&] {
        void* const handle = open(file);
        if (handle == nullptr) return notLoaded(file);
        if (!find(handle, "createNvOnnxParser_INTERNAL", library->createParser)) {
            return lacks(file, "createNvOnnxParser_INTERNAL");
        }
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_library_destroy(TurboTrtLibrary* library) { delete library; }

int32_t turbo_trt_library_version(TurboTrtLibrary const* library) { return library->version; }

char const* turbo_trt_library_path(TurboTrtLibrary const* library) { return library->path.c_str(); }
