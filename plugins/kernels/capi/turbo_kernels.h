/* The ops' CUDA kernels as a plain C library: what the standalone runner loads, without TensorRT.
 *
 * A node is an op with its attributes. Every function that can fail gives 0 for success; otherwise 1 and the
 * reason as text in `error`, cut to `capacity` bytes and always terminated. Functions of one node are not to
 * be called at the same time. Streams are `cudaStream_t`; null is the default stream.
 */
#ifndef TURBO_KERNELS_H
#define TURBO_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a function or structure below changes. */
#define TURBO_KERNELS_ABI 2

/* Element types, as `turbo::DType` numbers them. */
enum {
    TURBO_KERNELS_F32 = 0,
    TURBO_KERNELS_BF16 = 1,
    TURBO_KERNELS_F16 = 2,
    TURBO_KERNELS_I8 = 3,
    TURBO_KERNELS_I32 = 4
};

typedef struct turbo_kernels_node turbo_kernels_node;

typedef struct {
    char name[256];
    int32_t major; /* compute capability */
    int32_t minor;
    int32_t multiprocessors;
    int32_t clock; /* the highest of the multiprocessors, in kHz */
    int32_t driver; /* newest CUDA version that the driver takes, and the runtime's: 1000 major + 10 minor */
    int32_t runtime;
    uint64_t memory; /* bytes */
    uint64_t l2;
} turbo_kernels_device;

/* Contiguous row-major elements on the device; `data` may be null for `prepare`. */
typedef struct {
    int32_t type;
    int32_t rank; /* at most 4 */
    int64_t dim[4];
    void* data;
} turbo_kernels_tensor;

/* The tensors of a node in the order of its definition, and its workspace, aligned to 256 bytes. */
typedef struct {
    turbo_kernels_tensor const* in;
    turbo_kernels_tensor const* out;
    int32_t ins;
    int32_t outs;
    void* workspace;
    size_t workspace_bytes;
} turbo_kernels_call;

int32_t turbo_kernels_abi(void);

/* Makes the first device current and describes it. */
int32_t turbo_kernels_describe(turbo_kernels_device* device, char* error, size_t capacity);

int32_t turbo_kernels_malloc(size_t bytes, void** memory, char* error, size_t capacity);
int32_t turbo_kernels_free(void* memory, char* error, size_t capacity);
/* Between host and device in any direction; done when it returns. */
int32_t turbo_kernels_copy(void* to, void const* from, size_t bytes, char* error, size_t capacity);
int32_t turbo_kernels_fill(void* memory, int32_t byte, size_t bytes, char* error, size_t capacity);
/* Waits for all work and gives the first error since the last call, if any. */
int32_t turbo_kernels_synchronize(char* error, size_t capacity);

/* A node of the op of that name, its attributes not yet set. */
int32_t turbo_kernels_create(char const* op, turbo_kernels_node** node, char* error, size_t capacity);
void turbo_kernels_destroy(turbo_kernels_node* node);
int32_t turbo_kernels_set_int(turbo_kernels_node* node, char const* name, int64_t value, char* error,
                              size_t capacity);
int32_t turbo_kernels_set_float(turbo_kernels_node* node, char const* name, float value, char* error,
                                size_t capacity);
int32_t turbo_kernels_set_word(turbo_kernels_node* node, char const* name, char const* value, char* error,
                               size_t capacity);

/* Checks attributes, types and sizes, asks the kernel, and gives the bytes of workspace that it needs. */
int32_t turbo_kernels_prepare(turbo_kernels_node* node, turbo_kernels_call const* call, size_t* bytes,
                              char* error, size_t capacity);
/* Enqueues the work on a stream. */
int32_t turbo_kernels_launch(turbo_kernels_node* node, turbo_kernels_call const* call, void* stream,
                             char* error, size_t capacity);
/* Captures the work in a CUDA graph, runs it that many times and waits. */
int32_t turbo_kernels_replay(turbo_kernels_node* node, turbo_kernels_call const* call, int32_t times,
                             char* error, size_t capacity);
/* Runs the work `times` times after one that does not count, the L2 cache overwritten before each, and gives
 * the microseconds of each on the device. */
int32_t turbo_kernels_time(turbo_kernels_node* node, turbo_kernels_call const* call, int32_t times,
                           float* microseconds, char* error, size_t capacity);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop

#endif
