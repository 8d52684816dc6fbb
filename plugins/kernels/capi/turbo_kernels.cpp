// The functions of turbo_kernels.h: C types to ours, exceptions to text.
#include "turbo_kernels.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

#include "node.h"

struct turbo_kernels_node {
    std::string op;
    std::unique_ptr<turbo::Node> node;
};

namespace {

using turbo::Call;
using turbo::check;
using turbo::DType;
using turbo::Error;
using turbo::Tensor;

static_assert(TURBO_KERNELS_F32 == static_cast<int32_t>(DType::kF32));
static_assert(TURBO_KERNELS_BF16 == static_cast<int32_t>(DType::kBF16));
static_assert(TURBO_KERNELS_F16 == static_cast<int32_t>(DType::kF16));
static_assert(TURBO_KERNELS_I8 == static_cast<int32_t>(DType::kI8));
static_assert(TURBO_KERNELS_I32 == static_cast<int32_t>(DType::kI32));
static_assert(sizeof(turbo_kernels_tensor::dim) == sizeof(Tensor::dim));

int32_t failed(std::string const& what, char* error, size_t capacity) {
    if (error != nullptr && capacity > 0) {
        size_t const length = std::min(what.size(), capacity - 1);
        std::memcpy(error, what.data(), length);
        error[length] = '\0';
    }
    return 1;
}

// Runs `work`; nothing thrown leaves the library.
template <class Work>
int32_t guarded(char* error, size_t capacity, Work&& work) {
    try {
        work();
        return 0;
    } catch (Error const& e) {
        return failed(e.what, error, capacity);
    } catch (std::exception const& e) {
        return failed(e.what(), error, capacity);
    }
}

// The same for work on a node, whose op the text names.
template <class Work>
int32_t guarded(turbo_kernels_node const& node, char* error, size_t capacity, Work&& work) {
    return guarded(error, capacity, [&] {
        try {
            work();
        } catch (Error const& e) {
            throw Error{node.op + ": " + e.what};
        }
    });
}

struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "creating a stream"); }
    ~Stream() { cudaStreamDestroy(handle); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    void wait() const { check(cudaStreamSynchronize(handle), "waiting for the kernels"); }
};

struct Event {
    cudaEvent_t handle = nullptr;
    Event() { check(cudaEventCreate(&handle), "creating an event"); }
    ~Event() { cudaEventDestroy(handle); }
    Event(Event const&) = delete;
    Event& operator=(Event const&) = delete;
    void record(Stream const& stream) const {
        check(cudaEventRecord(handle, stream.handle), "recording an event");
    }
};

struct Memory {
    void* data = nullptr;
    explicit Memory(size_t bytes) { check(cudaMalloc(&data, bytes), "allocating"); }
    ~Memory() { cudaFree(data); }
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;
};

struct Graph {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Graph() = default;
    ~Graph() {
        if (executable != nullptr) cudaGraphExecDestroy(executable);
        if (graph != nullptr) cudaGraphDestroy(graph);
    }
    Graph(Graph const&) = delete;
    Graph& operator=(Graph const&) = delete;
};

std::vector<Tensor> tensors(turbo_kernels_tensor const* list, int32_t count) {
    std::vector<Tensor> all;
    for (int32_t i = 0; i < count; ++i) {
        turbo_kernels_tensor const& x = list[i];
        if (x.type < TURBO_KERNELS_F32 || x.type > TURBO_KERNELS_I32) {
            throw Error{"there is no element type " + std::to_string(x.type)};
        }
        if (x.rank < 0 || x.rank > turbo::kMaxRank) throw Error{"there is no rank " + std::to_string(x.rank)};
        Tensor tensor{static_cast<DType>(x.type), x.rank, {}, x.data};
        int64_t elements = 1;
        for (int32_t d = 0; d < x.rank; ++d) {
            tensor.dim[d] = x.dim[d];
            if (x.dim[d] < 0 || __builtin_mul_overflow(elements, x.dim[d], &elements)) {
                throw Error{"axis " + std::to_string(d) + " is " + std::to_string(x.dim[d])};
            }
        }
        all.push_back(tensor);
    }
    return all;
}

// A call that has been checked against the op, and the workspace that the kernel asks for.
struct Checked {
    std::vector<Tensor> in;
    std::vector<Tensor> out;
    Call call;
    size_t bytes;

    Checked(turbo::Node& node, turbo_kernels_call const& c)
        : in(tensors(c.in, c.ins)), out(tensors(c.out, c.outs)), call{in.data(), out.data()} {
        node.check(call, c.ins, c.outs);
        bytes = node.prepare(call);
    }
    Checked(Checked const&) = delete;
    Checked& operator=(Checked const&) = delete;
};

// A checked call that has what it needs on the device.
struct Ready : Checked {
    turbo::Node const& node;
    void* workspace;

    Ready(turbo::Node& n, turbo_kernels_call const& c) : Checked(n, c), node(n), workspace(c.workspace) {
        for (std::vector<Tensor> const* list : {&in, &out}) {
            for (Tensor const& x : *list) {
                if (x.data == nullptr && x.count() > 0) throw Error{"a tensor has no data"};
            }
        }
        if (c.workspace_bytes < bytes || (bytes > 0 && workspace == nullptr)) {
            throw Error{"needs " + std::to_string(bytes) + " bytes of workspace, found " +
                        std::to_string(c.workspace_bytes)};
        }
        if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) {
            throw Error{"workspace must be aligned to 256 bytes"};
        }
    }

    void launch(cudaStream_t stream) const { node.launch(call, workspace, stream); }
};

// Work before and after runs on streams of its own, so that nothing may rely on the default stream.
void settle() { check(cudaDeviceSynchronize(), "waiting for the device"); }

void replay(Ready const& ready, int32_t times) {
    settle();
    Stream stream;
    Graph graph;
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal), "starting the capture");
    std::string failure;
    try {
        ready.launch(stream.handle);
    } catch (Error const& e) {
        failure = e.what;
    }
    // The capture ends whatever happened in it, so that the stream can be destroyed.
    cudaError_t const ended = cudaStreamEndCapture(stream.handle, &graph.graph);
    if (!failure.empty()) throw Error{"in a capture: " + failure};
    check(ended, "ending the capture");
    check(cudaGraphInstantiate(&graph.executable, graph.graph, 0), "instantiating the graph");
    for (int32_t i = 0; i < times; ++i) {
        check(cudaGraphLaunch(graph.executable, stream.handle), "launching the graph");
    }
    stream.wait();
}

void time(Ready const& ready, int32_t times, float* microseconds) {
    int32_t device = 0;
    int32_t l2 = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "asking for the L2 cache");
    size_t const flushed = 2 * static_cast<size_t>(std::max(l2, 1 << 20));
    Memory flush(flushed);
    settle();
    Stream stream;
    std::vector<Event> starts(static_cast<size_t>(times));
    std::vector<Event> stops(static_cast<size_t>(times));
    ready.launch(stream.handle);
    for (size_t i = 0; i < starts.size(); ++i) {
        check(cudaMemsetAsync(flush.data, 0, flushed, stream.handle), "overwriting the L2 cache");
        starts[i].record(stream);
        ready.launch(stream.handle);
        stops[i].record(stream);
    }
    stream.wait();
    for (size_t i = 0; i < starts.size(); ++i) {
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, starts[i].handle, stops[i].handle), "reading the time");
        microseconds[i] = 1000 * milliseconds;
    }
}

int32_t set(turbo_kernels_node* node, char const* name, turbo::Value const& value, char* error,
            size_t capacity) {
    return guarded(*node, error, capacity, [&] { node->node->set(name, value); });
}

}  // namespace

extern "C" {

int32_t turbo_kernels_abi(void) { return TURBO_KERNELS_ABI; }

int32_t turbo_kernels_describe(turbo_kernels_device* device, char* error, size_t capacity) {
    return guarded(error, capacity, [&] {
        check(cudaSetDevice(0), "using the first device");
        cudaDeviceProp properties{};
        check(cudaGetDeviceProperties(&properties, 0), "asking for the device");
        *device = {};
        std::copy_n(properties.name, std::min(sizeof(device->name), sizeof(properties.name)), device->name);
        device->name[sizeof(device->name) - 1] = '\0';
        device->major = properties.major;
        device->minor = properties.minor;
        device->multiprocessors = properties.multiProcessorCount;
        check(cudaDeviceGetAttribute(&device->clock, cudaDevAttrClockRate, 0), "asking for the clock");
        device->memory = properties.totalGlobalMem;
        device->l2 = static_cast<uint64_t>(properties.l2CacheSize);
        check(cudaDriverGetVersion(&device->driver), "asking for the driver's version");
        check(cudaRuntimeGetVersion(&device->runtime), "asking for the runtime's version");
    });
}

int32_t turbo_kernels_malloc(size_t bytes, void** memory, char* error, size_t capacity) {
    return guarded(error, capacity, [&] {
        std::string const action = "allocating " + std::to_string(bytes) + " bytes";
        check(cudaMalloc(memory, bytes), action.c_str());
    });
}

int32_t turbo_kernels_free(void* memory, char* error, size_t capacity) {
    return guarded(error, capacity, [&] { check(cudaFree(memory), "freeing memory"); });
}

int32_t turbo_kernels_copy(void* to, void const* from, size_t bytes, char* error, size_t capacity) {
    return guarded(error, capacity, [&] {
        check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying");
        settle();
    });
}

int32_t turbo_kernels_fill(void* memory, int32_t byte, size_t bytes, char* error, size_t capacity) {
    return guarded(error, capacity, [&] { check(cudaMemset(memory, byte, bytes), "filling memory"); });
}

int32_t turbo_kernels_synchronize(char* error, size_t capacity) {
    return guarded(error, capacity, [&] {
        settle();
        check(cudaGetLastError(), "earlier work");
    });
}

int32_t turbo_kernels_create(char const* op, turbo_kernels_node** node, char* error, size_t capacity) {
    return guarded(error, capacity, [&] {
        auto made = turbo::makeNode(op);
        if (made == nullptr) throw Error{std::string("there is no op `") + op + "`"};
        *node = new turbo_kernels_node{op, std::move(made)};
    });
}

void turbo_kernels_destroy(turbo_kernels_node* node) { delete node; }

int32_t turbo_kernels_set_int(turbo_kernels_node* node, char const* name, int64_t value, char* error,
                              size_t capacity) {
    return set(node, name, value, error, capacity);
}

int32_t turbo_kernels_set_float(turbo_kernels_node* node, char const* name, float value, char* error,
                                size_t capacity) {
    return set(node, name, value, error, capacity);
}

int32_t turbo_kernels_set_word(turbo_kernels_node* node, char const* name, char const* value, char* error,
                               size_t capacity) {
    return set(node, name, std::string(value), error, capacity);
}

int32_t turbo_kernels_prepare(turbo_kernels_node* node, turbo_kernels_call const* call, size_t* bytes,
                              char* error, size_t capacity) {
    return guarded(*node, error, capacity, [&] { *bytes = Checked(*node->node, *call).bytes; });
}

int32_t turbo_kernels_launch(turbo_kernels_node* node, turbo_kernels_call const* call, void* stream,
                             char* error, size_t capacity) {
    return guarded(*node, error, capacity,
                   [&] { Ready(*node->node, *call).launch(static_cast<cudaStream_t>(stream)); });
}

int32_t turbo_kernels_replay(turbo_kernels_node* node, turbo_kernels_call const* call, int32_t times,
                             char* error, size_t capacity) {
    return guarded(*node, error, capacity, [&] { replay(Ready(*node->node, *call), times); });
}

int32_t turbo_kernels_time(turbo_kernels_node* node, turbo_kernels_call const* call, int32_t times,
                           float* microseconds, char* error, size_t capacity) {
    return guarded(*node, error, capacity, [&] { time(Ready(*node->node, *call), times, microseconds); });
}

}  // extern "C"
