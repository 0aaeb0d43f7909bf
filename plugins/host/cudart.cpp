// A stand-in for libcudart.so.13, for tests: device memory is host memory, a stream is the calling thread, and a launch
// runs the translated kernel to its end before it returns.
//
// Owns the part of the runtime that plugin libraries and ds4export/runtime use; what is missing is an undefined symbol
// that the loader names. Errors that a GPU would report are returned; what cannot be played ends the process with its
// name. Graphs hold copies, fills and host functions. Cannot show the order of streams, time, kernels in a graph, or
// kernels that were shipped without PTX.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "block.h"
#include "kernel_table.h"

namespace {

constexpr unsigned MAX_GRID_YZ = 65535, MAX_BLOCK_THREADS = 1024;
constexpr size_t DEFAULT_DYNAMIC_SHARED = 48 << 10;

struct Function {
  ds4::host::Kernel const* kernel = nullptr;  // null: it was not translated
  std::string name;
  size_t most_dynamic_shared = DEFAULT_DYNAMIC_SHARED;
  long num_launches = 0;
};

// By the address of the host stub. Never destroyed: libraries unregister after static destructors have run.
std::map<void const*, Function>& functions() {
  static auto& all = *new std::map<void const*, Function>;
  return all;
}

struct Event {
  std::chrono::steady_clock::time_point at;
};

using Work = std::vector<std::function<void()>>;

struct Stream {
  bool is_capturing = false, is_invalid = false;
  Work recorded;
};

// The stream of a handle; the default streams have none of their own and never capture.
Stream* stream_of(cudaStream_t handle) {
  return reinterpret_cast<uintptr_t>(handle) > 2 ? reinterpret_cast<Stream*>(handle) : nullptr;
}

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared;
  cudaStream_t stream;
};

thread_local cudaError_t last_error = cudaSuccess;
thread_local Configuration pushed;

cudaError_t answer(cudaError_t code) {
  if (code != cudaSuccess) last_error = code;
  return code;
}

// Bytes of each live allocation.
std::map<void*, size_t>& allocations() {
  static auto& all = *new std::map<void*, size_t>;
  return all;
}

Stream* capturing = nullptr;  // one at a time

// What a GPU answers to a call that no capture can hold: the capture is lost with it.
bool breaks_capture() {
  if (!capturing) return false;
  capturing->is_invalid = true;
  return true;
}

cudaError_t enqueue(cudaStream_t handle, std::function<void()> work) {
  Stream* const stream = stream_of(handle);
  if (stream && stream->is_capturing) {
    stream->recorded.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

[[noreturn]] void cannot_play(char const* what, long number) {
  std::fprintf(stderr, "stand-in CUDA runtime: cannot play %s %ld\n", what, number);
  std::abort();
}

// Set by the plugin host for each job, never by users.
long setting(char const* name, long otherwise) {
  char const* const text = std::getenv(name);
  return text ? std::strtol(text, nullptr, 10) : otherwise;
}

size_t total_bytes() { return static_cast<size_t>(setting("DS4_HOST_TOTAL_BYTES", 64l << 30)); }

size_t free_bytes() {
  size_t taken = 0;
  for (auto const& [at, num_bytes] : allocations()) taken += num_bytes;
  return taken < total_bytes() ? total_bytes() - taken : 0;
}

long capability() { return setting("DS4_HOST_CAPABILITY", 80); }

size_t most_shared() {
  long const c = capability();
  if (c == 80 || c == 87) return 163 << 10;
  return (c >= 90 && c < 120 ? 227 : 99) << 10;
}

Function* function(void const* stub) {
  auto const found = functions().find(stub);
  return found == functions().end() || !found->second.kernel ? nullptr : &found->second;
}

ds4::host::Schedule schedule() {
  return {static_cast<ds4::host::Schedule::Order>(setting("DS4_HOST_ORDER", 0)), setting("DS4_HOST_COPIES_AT_ISSUE", 0) != 0};
}

cudaError_t launch(void const* stub, dim3 grid, dim3 block, void** arguments, size_t dynamic_shared) {
  if (capturing) cannot_play("a kernel in a capture", 0);
  Function* const f = function(stub);
  if (!f) return cudaErrorInvalidDeviceFunction;
  unsigned const most_threads = f->kernel->max_threads ? f->kernel->max_threads : MAX_BLOCK_THREADS;
  unsigned long const num_threads = 1ul * block.x * block.y * block.z;
  if (!num_threads || num_threads > most_threads || block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ) {
    return cudaErrorInvalidConfiguration;
  }
  // Dynamic memory begins at a multiple of 16 after the static part.
  size_t const shared = f->kernel->static_shared_bytes + dynamic_shared;
  if (dynamic_shared > f->most_dynamic_shared || shared > most_shared()) return cudaErrorInvalidValue;
  ++f->num_launches;
  ds4::host::run({f->name.c_str(), f->kernel->code, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, arguments},
                 schedule());
  return cudaSuccess;
}

}  // namespace

extern "C" {

// What nvcc's generated code calls.
void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void**, char const* stub, char*, char const* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  Function f{nullptr, name, DEFAULT_DYNAMIC_SHARED, 0};
  for (auto const* k = ds4::host::first_kernel(); k; k = k->next) {
    if (f.name == k->name) f.kernel = k;
  }
  functions()[stub] = f;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream) {
  pushed = {grid, block, dynamic_shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* dynamic_shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *dynamic_shared = pushed.dynamic_shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  return answer(launch(kernel, grid, block, arguments, shared));
}

cudaError_t cudaLaunchKernel(void const* stub, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  return answer(launch(stub, grid, block, arguments, shared));
}

cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* stub, void** arguments) {
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) cannot_play("launch attribute", config->attrs[i].id);
  }
  return answer(launch(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes));
}

cudaError_t cudaFuncSetAttribute(void const* stub, cudaFuncAttribute attribute, int value) {
  Function* const f = function(stub);
  if (!f) return answer(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) cannot_play("function attribute", attribute);
  if (value < 0 || f->kernel->static_shared_bytes + static_cast<size_t>(value) > most_shared()) return answer(cudaErrorInvalidValue);
  f->most_dynamic_shared = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t const code = last_error;
  last_error = cudaSuccess;
  return code;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
char const* cudaGetErrorName(cudaError_t code) { return code == cudaSuccess ? "cudaSuccess" : "cudaError"; }
char const* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "an error that the stand-in runtime does not name";
  }
}

// Exactly the bytes asked for, so that AddressSanitizer sees the first one past them; all NaN.
cudaError_t cudaMalloc(void** out, size_t num_bytes) {
  if (breaks_capture()) return answer(cudaErrorStreamCaptureUnsupported);
  if (num_bytes > free_bytes()) return answer(cudaErrorMemoryAllocation);
  if (posix_memalign(out, 256, num_bytes ? num_bytes : 1)) return answer(cudaErrorMemoryAllocation);
  std::memset(*out, 0xff, num_bytes);
  allocations()[*out] = num_bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  if (at && !allocations().erase(at)) return answer(cudaErrorInvalidValue);
  std::free(at);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = free_bytes();
  *total = total_bytes();
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, void const* from, size_t num_bytes, cudaMemcpyKind) {
  std::memmove(to, from, num_bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t num_bytes, cudaMemcpyKind, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memmove(to, from, num_bytes); });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, void const* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind,
                              cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<char const*>(from) + row * from_pitch, width);
    }
  });
}
cudaError_t cudaMemset(void* at, int value, size_t num_bytes) {
  std::memset(at, value, num_bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t num_bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(at, value, num_bytes); });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* context) {
  return enqueue(stream, [=] { function(context); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  *out = reinterpret_cast<cudaStream_t>(new Stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* out) { return cudaStreamCreateWithFlags(out, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream_of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return answer(breaks_capture() ? cudaErrorStreamCaptureUnsupported : cudaSuccess); }

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  Stream* const stream = stream_of(handle);
  if (!stream || capturing) return answer(cudaErrorStreamCaptureUnsupported);
  stream->is_capturing = true;
  capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Stream* const stream = stream_of(handle);
  *graph = nullptr;
  if (!stream || !stream->is_capturing) return answer(cudaErrorInvalidValue);
  Stream const captured = std::exchange(*stream, Stream{});
  capturing = nullptr;
  if (captured.is_invalid) return answer(cudaErrorStreamCaptureInvalidated);
  *graph = reinterpret_cast<cudaGraph_t>(new Work(captured.recorded));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  if (!graph) return answer(cudaErrorInvalidValue);
  *out = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Work*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (auto const& work : *reinterpret_cast<Work*>(graph)) work();
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<Work*>(graph);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* out) {
  *out = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  reinterpret_cast<Event*>(event)->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  auto const passed = reinterpret_cast<Event*>(end)->at - reinterpret_cast<Event*>(begin)->at;
  *ms = std::chrono::duration<float, std::milli>(passed).count();
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
// What a machine without a GPU answers can be set: the code, cudaErrorNoDevice for example.
cudaError_t cudaGetDeviceCount(int* count) {
  auto const code = static_cast<cudaError_t>(setting("DS4_HOST_NO_DEVICE", cudaSuccess));
  *count = code == cudaSuccess;
  return answer(code);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = static_cast<int>(capability() / 10); break;
    case cudaDevAttrComputeCapabilityMinor: *value = static_cast<int>(capability() % 10); break;
    case cudaDevAttrMultiProcessorCount: *value = static_cast<int>(setting("DS4_HOST_MULTIPROCESSORS", 108)); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(most_shared()); break;
    default: cannot_play("device attribute", attribute);
  }
  return cudaSuccess;
}

// For the plugin host alone: calls `visit` for each kernel that was registered. The real runtime has no such entry.
void cudaStandInVisitKernels(void (*visit)(void* context, char const* name, int translated, long num_launches), void* context) {
  for (auto const& [stub, f] : functions()) visit(context, f.name.c_str(), f.kernel != nullptr, f.num_launches);
}

}  // extern "C"
