// Plays TensorRT's part for a plugin library: jobs come on the standard input, outputs go to the standard output.
//
//   plugin_host LIBRARY
//
// A job is lines of text, then the bytes of its inputs; the answer is a line, then the bytes of the outputs:
//
//   setting NAME VALUE                     for the runtime under the library (plugins/host/cudart.cpp)
//   op NAME VERSION
//   attribute NAME int|float|text VALUE
//   input TYPE AXIS AXIS ...               in the order of the op; TYPE is bf16, float32, int8 or int64
//   once                                   only one enqueue
//   run
//
//   ok N                                   then N lines `TYPE AXIS ...`, then the bytes
//   error TEXT
//
// The job `kernels` answers with `ok N` and N lines `LAUNCHES TRANSLATED NAME`; `ops` with N lines `NAME VERSION`.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "life.h"

namespace ds4::host {
namespace {

using nvinfer1::DataType;
using nvinfer1::IPluginCreatorV3One;
using nvinfer1::PluginFieldType;

struct TypeName {
  char const* name;
  DataType type;
};
constexpr TypeName TYPES[] = {{"bf16", DataType::kBF16}, {"float32", DataType::kFLOAT}, {"int8", DataType::kINT8}, {"int64", DataType::kINT64}};

DataType type_from(std::string const& name) {
  for (TypeName const& t : TYPES) {
    if (name == t.name) return t.type;
  }
  throw std::runtime_error("type `" + name + "` is not known");
}

char const* name_from(DataType type) {
  for (TypeName const& t : TYPES) {
    if (type == t.type) return t.name;
  }
  throw std::runtime_error("an output has a type that is not known");
}

class Library {
 public:
  explicit Library(char const* path) {
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw std::runtime_error(dlerror());
    auto const entry = [&](char const* name) {
      void* const found = dlsym(handle, name);
      if (!found) throw std::runtime_error(std::string(path) + " has no entry " + name);
      return found;
    };
    reinterpret_cast<void (*)(void*)>(entry("setLoggerFinder"))(nullptr);
    last_error_ = reinterpret_cast<char const* (*)()>(entry("ds4_plugins_last_error"));
    int32_t count = 0;
    auto const* const list = reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(entry("getCreators"))(count);
    for (int32_t i = 0; i < count; ++i) creators_.push_back(static_cast<IPluginCreatorV3One*>(list[i]));
  }

  IPluginCreatorV3One* creator(std::string const& name, std::string const& version) const {
    for (IPluginCreatorV3One* c : creators_) {
      if (name != c->getPluginName() || std::strcmp(c->getPluginNamespace(), "ds4")) continue;
      if (version == c->getPluginVersion()) return c;
      throw std::runtime_error("the library has version " + std::string(c->getPluginVersion()) + " of `" + name + "`, expected " + version);
    }
    throw std::runtime_error("the library has no plugin `" + name + "`");
  }
  std::vector<IPluginCreatorV3One*> const& creators() const { return creators_; }
  char const* last_error() const { return last_error_(); }

 private:
  std::vector<IPluginCreatorV3One*> creators_;
  char const* (*last_error_)() = nullptr;
};

template <class T>
std::string bytes_from(T value) {
  return std::string(reinterpret_cast<char const*>(&value), sizeof(T));
}

Field field_from(std::istringstream& line) {
  std::string name, type, value;
  line >> name >> type >> value;
  if (type == "int") return {name, PluginFieldType::kINT64, bytes_from(static_cast<int64_t>(std::stoll(value)))};
  if (type == "float") return {name, PluginFieldType::kFLOAT32, bytes_from(std::stof(value))};
  return {name, PluginFieldType::kCHAR, value};
}

Value input_from(std::istringstream& line) {
  std::string type;
  line >> type;
  Value out{type_from(type), {}, {}};
  size_t num_bytes = bytes_of(out.type);
  for (int64_t axis; line >> axis;) {
    out.dims.push_back(axis);
    num_bytes *= static_cast<size_t>(axis);
  }
  out.bytes.resize(num_bytes);
  return out;
}

void answer(std::vector<Value> const& outputs) {
  std::cout << "ok " << outputs.size() << '\n';
  for (Value const& v : outputs) {
    std::cout << name_from(v.type);
    for (int64_t axis : v.dims) std::cout << ' ' << axis;
    std::cout << '\n';
  }
  for (Value const& v : outputs) std::cout.write(v.bytes.data(), static_cast<std::streamsize>(v.bytes.size()));
}

void answer_kernels() {
  using Visit = void (*)(void*, char const*, int, long);
  auto* const visit_all = reinterpret_cast<void (*)(Visit, void*)>(dlsym(RTLD_DEFAULT, "cudaStandInVisitKernels"));
  if (!visit_all) throw std::runtime_error("the CUDA runtime is a real one");
  std::vector<std::string> lines;
  visit_all([](void* context, char const* name, int translated, long launches) {
    static_cast<std::vector<std::string>*>(context)->push_back(std::to_string(launches) + ' ' + std::to_string(translated) + ' ' + name);
  }, &lines);
  std::cout << "ok " << lines.size() << '\n';
  for (std::string const& line : lines) std::cout << line << '\n';
}

// The lines of one job up to its last, and their effect.
class Job {
 public:
  explicit Job(Library const& library) : library_(library) {}

  bool read() {
    for (std::string text; std::getline(std::cin, text);) {
      std::istringstream line(text);
      std::string word;
      line >> word;
      if (word == "run" || word == "kernels" || word == "ops") {
        kind_ = word;
        for (Value& v : node_.inputs) std::cin.read(v.bytes.data(), static_cast<std::streamsize>(v.bytes.size()));
        return true;
      }
      take(word, line);
    }
    return false;
  }

  void answer_it() {
    if (kind_ == "kernels") return answer_kernels();
    if (kind_ == "ops") return answer_ops();
    node_.creator = library_.creator(op_, version_);
    answer(live(node_));
  }

 private:
  void take(std::string const& word, std::istringstream& line) {
    if (word == "setting") {
      std::string name, value;
      line >> name >> value;
      setenv(name.c_str(), value.c_str(), 1);
    } else if (word == "op") {
      line >> op_ >> version_;
    } else if (word == "attribute") {
      node_.fields.push_back(field_from(line));
    } else if (word == "input") {
      node_.inputs.push_back(input_from(line));
    } else if (word == "once") {
      node_.one_enqueue = true;
    }
  }
  void answer_ops() const {
    std::cout << "ok " << library_.creators().size() << '\n';
    for (IPluginCreatorV3One* c : library_.creators()) std::cout << c->getPluginName() << ' ' << c->getPluginVersion() << '\n';
  }
  Library const& library_;
  std::string kind_, op_, version_;
  Node node_{};
};

}  // namespace
}  // namespace ds4::host

int main(int, char** arguments) {
  try {
    ds4::host::Library const library(arguments[1]);
    for (;;) {
      ds4::host::Job job(library);
      if (!job.read()) return 0;
      library.last_error();  // of the job before
      try {
        job.answer_it();
      } catch (std::runtime_error const& error) {
        std::string const why = library.last_error();
        std::cout << "error " << error.what() << (why.empty() ? "" : ": ") << why << '\n';
      }
      std::cout.flush();
    }
  } catch (std::exception const& error) {
    std::cerr << "plugin host: " << error.what() << '\n';
    return 1;
  }
}
