// Stands in for the CUDA runtime where there is no GPU: memory of the "device" is known by its addresses, so that a copy
// in a wrong direction, a pointer of the host in an engine's hand, and memory that was given back are found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
using cudaStream_t = struct Stream*;
using cudaMemPool_t = struct Pool*;

inline std::map<const char*, size_t>& ListDeviceMemory() {
  static std::map<const char*, size_t> sizes;
  return sizes;
}

// Tells whether so many bytes are on the device.
inline bool IsOnDevice(const void* memory, size_t num_bytes) {
  const char* first = static_cast<const char*>(memory);
  auto found = ListDeviceMemory().upper_bound(first);
  if (found == ListDeviceMemory().begin()) return false;
  --found;
  return first + num_bytes <= found->first + found->second;
}

inline cudaStream_t GetOnlyStream() { return reinterpret_cast<cudaStream_t>(std::uintptr_t{1}); }

inline cudaError_t Tell(bool is_well) { return is_well ? cudaSuccess : cudaErrorInvalidValue; }

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = GetOnlyStream();
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return Tell(stream == GetOnlyStream()); }

inline cudaError_t cudaMallocAsync(void** memory, size_t num_bytes, cudaStream_t stream) {
  *memory = std::malloc(num_bytes);
  std::memset(*memory, 0xff, num_bytes);  // NaN: memory is not zero before it is set
  ListDeviceMemory()[static_cast<const char*>(*memory)] = num_bytes;
  return Tell(stream == GetOnlyStream());
}

inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  const auto found = ListDeviceMemory().find(static_cast<const char*>(memory));
  if (found == ListDeviceMemory().end() || stream != GetOnlyStream()) std::abort();
  std::memset(memory, 0xff, found->second);
  ListDeviceMemory().erase(found);
  std::free(memory);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t num_bytes, cudaStream_t stream) {
  if (!IsOnDevice(memory, num_bytes) || stream != GetOnlyStream()) return cudaErrorInvalidValue;
  std::memset(memory, value, num_bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                                     size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (target_pitch < width || source_pitch < width || height == 0 || stream != GetOnlyStream()) {
    return cudaErrorInvalidValue;
  }
  const bool is_source_right = IsOnDevice(source, source_pitch * (height - 1) + width) == (kind != cudaMemcpyHostToDevice);
  const bool is_target_right = IsOnDevice(target, target_pitch * (height - 1) + width) == (kind != cudaMemcpyDeviceToHost);
  if (!is_source_right || !is_target_right) return cudaErrorInvalidValue;
  for (size_t row = 0; row < height; ++row) {
    std::memcpy(static_cast<char*>(target) + row * target_pitch, static_cast<const char*>(source) + row * source_pitch,
                width);
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t num_bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  return cudaMemcpy2DAsync(target, num_bytes, source, num_bytes, num_bytes, 1, kind, stream);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}

inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
