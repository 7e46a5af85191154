// Stands in for TensorRT's runtime where there is no GPU: an "engine" is a text file that names an ONNX graph, which
// onnxruntime runs, and the engine's profiles. It refuses what TensorRT refuses: an input of which shape or address is not
// set, a shape outside of the profile that was chosen, memory that is not of the device, and scratch memory not given.
//
// A line is a word and what belongs to it: "graph PATH", and for each input of each profile "profile NUMBER NAME MIN MAX".
#pragma once

#include <cuda_runtime_api.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nvinfer1 {

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

enum class TensorIOMode : int32_t { kNONE, kINPUT, kOUTPUT };
enum class TensorLocation : int32_t { kDEVICE, kHOST };
enum class OptProfileSelector : int32_t { kMIN, kOPT, kMAX };
enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

// An input or output of a graph.
struct IOTensor {
  std::string name;
  bool is_output;
  ONNXTensorElementDataType type;
  std::vector<std::string> axes;  // empty names for fixed sizes
  std::vector<int64_t> sizes;
};

constexpr size_t kScratchBytes = 1000;

class IExecutionContext;

class ICudaEngine {
 public:
  ICudaEngine(ILogger& logger, const std::string& text) : logger_(logger), session_(nullptr) {
    std::istringstream lines(text);
    for (std::string word; lines >> word;) {
      if (word == "graph") {
        std::string path;
        lines >> path;
        session_ = Ort::Session(env_, path.c_str(), Ort::SessionOptions());
      } else {
        size_t number = 0;
        std::string name, least, most;
        lines >> number >> name >> least >> most;
        if (profiles_.size() <= number) profiles_.resize(number + 1);
        profiles_[number][name] = {Parse(least), Parse(most)};
      }
    }
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t index = 0; index < session_.GetInputCount(); ++index) {
      Add(session_.GetInputNameAllocated(index, allocator).get(), session_.GetInputTypeInfo(index), false);
    }
    for (size_t index = 0; index < session_.GetOutputCount(); ++index) {
      Add(session_.GetOutputNameAllocated(index, allocator).get(), session_.GetOutputTypeInfo(index), true);
    }
  }

  int32_t getNbIOTensors() const { return static_cast<int32_t>(tensors_.size()); }
  const char* getIOTensorName(int32_t index) const { return tensors_.at(static_cast<size_t>(index)).name.c_str(); }
  TensorIOMode getTensorIOMode(const char* name) const {
    return Find(name).is_output ? TensorIOMode::kOUTPUT : TensorIOMode::kINPUT;
  }
  TensorLocation getTensorLocation(const char*) const { return TensorLocation::kDEVICE; }
  int32_t getTensorBytesPerComponent(const char* name) const {
    const ONNXTensorElementDataType type = Find(name).type;
    return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? 8 : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
  }
  int32_t getNbOptimizationProfiles() const { return static_cast<int32_t>(profiles_.size()); }
  Dims getProfileShape(const char* name, int32_t number, OptProfileSelector select) const {
    const auto& profile = profiles_.at(static_cast<size_t>(number));
    const auto found = profile.find(name);
    if (found == profile.end()) return {-1, {}};
    return select == OptProfileSelector::kMIN ? found->second.first : found->second.second;
  }
  inline IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy);

 private:
  friend class IExecutionContext;

  static Dims Parse(const std::string& text) {
    Dims dims{};
    std::istringstream sizes(text);
    for (std::string size; std::getline(sizes, size, 'x');) dims.d[dims.nbDims++] = std::stoll(size);
    return dims;
  }

  void Add(const char* name, const Ort::TypeInfo& info, bool is_output) {
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    std::vector<const char*> axes(tensor.GetDimensionsCount());
    tensor.GetSymbolicDimensions(axes.data(), axes.size());
    tensors_.push_back({name, is_output, tensor.GetElementType(), {axes.begin(), axes.end()}, tensor.GetShape()});
  }

  const IOTensor& Find(const std::string& name) const {
    for (const IOTensor& tensor : tensors_) {
      if (tensor.name == name) return tensor;
    }
    throw std::out_of_range("no tensor " + name);
  }

  ILogger& logger_;
  Ort::Env env_;
  Ort::Session session_;
  std::vector<IOTensor> tensors_;
  std::vector<std::map<std::string, std::pair<Dims, Dims>>> profiles_;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(ICudaEngine& engine) : engine_(engine) {}

  int32_t getOptimizationProfile() const { return profile_; }
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) {
    profile_ = profile;
    shapes_.clear();
    return profile < engine_.getNbOptimizationProfiles() && stream == GetOnlyStream();
  }

  bool setInputShape(const char* name, const Dims& dims) {
    const Dims least = engine_.getProfileShape(name, profile_, OptProfileSelector::kMIN);
    const Dims most = engine_.getProfileShape(name, profile_, OptProfileSelector::kMAX);
    bool fits = dims.nbDims == least.nbDims;
    for (int32_t axis = 0; fits && axis < dims.nbDims; ++axis) {
      fits = least.d[axis] <= dims.d[axis] && dims.d[axis] <= most.d[axis];
    }
    if (!fits) return Refuse(std::string("the profile does not take the shape of ") + name);
    shapes_[name] = {dims.d, dims.d + dims.nbDims};
    scratch_bytes_ = 0;
    return true;
  }

  bool setTensorAddress(const char* name, void* memory) {
    addresses_[name] = memory;
    return true;
  }

  Dims getTensorShape(const char* name) const {
    const IOTensor& tensor = engine_.Find(name);
    const std::vector<int64_t> shape = Resolve(tensor);
    Dims dims{static_cast<int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
  }

  size_t updateDeviceMemorySizeForShapes() { return kScratchBytes; }
  void setDeviceMemoryV2(void* memory, int64_t size) {
    scratch_bytes_ = IsOnDevice(memory, static_cast<size_t>(size)) ? static_cast<size_t>(size) : 0;
  }

  bool enqueueV3(cudaStream_t stream) {
    if (stream != GetOnlyStream()) return Refuse("wrong stream");
    if (scratch_bytes_ < kScratchBytes) return Refuse("no scratch memory");
    const auto memory_info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char*> names[2];
    std::vector<Ort::Value> values[2];
    for (const IOTensor& tensor : engine_.tensors_) {
      if (!tensor.is_output && shapes_.count(tensor.name) == 0) return Refuse("no shape of " + tensor.name);
      const std::vector<int64_t> shape = Resolve(tensor);
      size_t num_bytes = static_cast<size_t>(engine_.getTensorBytesPerComponent(tensor.name.c_str()));
      for (const int64_t size : shape) num_bytes *= static_cast<size_t>(size);
      void* memory = addresses_[tensor.name];
      if (!IsOnDevice(memory, num_bytes)) return Refuse("no memory of the device for " + tensor.name);
      names[tensor.is_output].push_back(tensor.name.c_str());
      values[tensor.is_output].push_back(
          Ort::Value::CreateTensor(memory_info, memory, num_bytes, shape.data(), shape.size(), tensor.type));
    }
    engine_.session_.Run(Ort::RunOptions{}, names[0].data(), values[0].data(), values[0].size(), names[1].data(),
                         values[1].data(), values[1].size());
    return true;
  }

 private:
  bool Refuse(const std::string& why) {
    engine_.logger_.log(ILogger::Severity::kERROR, why.c_str());
    return false;
  }

  // Returns the shape of a tensor, which those of the inputs decide.
  std::vector<int64_t> Resolve(const IOTensor& wanted) const {
    std::map<std::string, int64_t> known;
    for (const IOTensor& tensor : engine_.tensors_) {
      const auto found = shapes_.find(tensor.name);
      for (size_t axis = 0; found != shapes_.end() && axis < tensor.axes.size(); ++axis) {
        known[tensor.axes[axis]] = found->second[axis];
      }
    }
    std::vector<int64_t> shape = wanted.sizes;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] < 0) shape[axis] = known.at(wanted.axes[axis]);
    }
    return shape;
  }

  ICudaEngine& engine_;
  int32_t profile_ = 0;
  size_t scratch_bytes_ = 0;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, void*> addresses_;
};

inline IExecutionContext* ICudaEngine::createExecutionContext(ExecutionContextAllocationStrategy strategy) {
  return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new IExecutionContext(*this) : nullptr;
}

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}

  ICudaEngine* deserializeCudaEngine(const void* content, size_t num_bytes) {
    const std::string text(static_cast<const char*>(content), num_bytes);
    if (text.rfind("graph ", 0) == 0) return new ICudaEngine(logger_, text);
    logger_.log(ILogger::Severity::kERROR, "it is no engine of this version\nand more");
    return nullptr;
  }

 private:
  ILogger& logger_;
};

inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime(logger); }

}  // namespace nvinfer1
