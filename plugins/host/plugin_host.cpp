// Plays TensorRT's part for a plugin library: jobs come on the standard input, outputs go to the standard output.
//
//   plugin_host LIBRARY
//
// A job is lines of text, the last of which says what to do, then the bytes that it brings. The answer is a line, then
// as many lines as it says, then bytes:
//
//   ok N
//   error TEXT
//
// A node's whole life. Outputs are N lines `TYPE AXIS ...`, then their bytes:
//
//   setting NAME VALUE                     for the runtime under the library (plugins/host/cudart.cpp)
//   op NAME VERSION
//   attribute NAME int|float|text VALUE
//   input TYPE AXIS AXIS ...               in the order of the op; TYPE is bf16, float32, int8 or int64
//   use B                                  the next input is buffer B, where it is
//   once                                   only one enqueue
//   keep B                                 with `once`, for each output in order: it becomes buffer B and sends no bytes
//   run                                    then the bytes of each `input`
//
// Buffers live in the host until they are dropped; B is a number. An output that a plugin aliases to an input is kept in
// the memory of that input, under a number more.
//
//   buffer B TYPE AXIS ...                 then its bytes
//   file PATH                              for `map` lines of the same job
//   map read|write B OFFSET TYPE AXIS ...  bytes of the file. `read`: who writes there ends the process; `write`: they are
//                                          the file's, for all who have mapped it
//   read B                                 answers like an output
//   drop B                                 no job of its own: comes before the lines of another
//
// `kernels` answers with N lines `LAUNCHES TRANSLATED NAME`; `ops` with N lines `NAME VERSION`.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
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

// Type and axes; nothing holds the bytes yet.
Value value_from(std::istringstream& line) {
  std::string type;
  line >> type;
  Value out{type_from(type), {}, {}, nullptr};
  for (int64_t axis; line >> axis;) out.dims.push_back(axis);
  return out;
}

std::string bytes_from_input(size_t num_bytes) {
  std::string out(num_bytes, '\0');
  std::cin.read(out.data(), static_cast<std::streamsize>(num_bytes));
  return out;
}

// A range of a file between two pages that nobody may touch.
class MappedMemory : public Memory {
 public:
  MappedMemory(std::string const& path, size_t offset, size_t num_bytes, bool is_writable) {
    int const file = open(path.c_str(), (is_writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (file < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
    try {
      map(path, file, offset, num_bytes, is_writable);
    } catch (...) {
      close(file);
      throw;
    }
    close(file);
  }
  ~MappedMemory() override { munmap(around_, length_); }

 private:
  void map(std::string const& path, int file, size_t offset, size_t num_bytes, bool is_writable) {
    struct stat facts {};
    if (fstat(file, &facts) || offset + num_bytes > static_cast<size_t>(facts.st_size)) {
      throw std::runtime_error(path + " ends before byte " + std::to_string(offset + num_bytes));
    }
    auto const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t const first = offset / page * page, inside = (offset + num_bytes - first + page - 1) / page * page;
    length_ = inside + 2 * page;
    around_ = mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (around_ == MAP_FAILED) throw std::runtime_error(path + ": " + std::strerror(errno));
    char* const begin = static_cast<char*>(around_) + page;
    int const access = is_writable ? PROT_READ | PROT_WRITE : PROT_READ, kind = is_writable ? MAP_SHARED : MAP_PRIVATE;
    if (mmap(begin, inside, access, MAP_FIXED | kind, file, static_cast<off_t>(first)) == MAP_FAILED) {
      std::string const why = std::strerror(errno);
      munmap(around_, length_);
      throw std::runtime_error(path + ": " + why);
    }
    data_ = begin + (offset - first);
  }
  void* around_ = nullptr;
  size_t length_ = 0;
};

constexpr size_t ALIGNMENT = 16;  // of the widest access of a kernel

std::shared_ptr<Memory> mapped(std::string const& path, size_t offset, size_t num_bytes, bool is_writable) {
  if (!num_bytes) return device_memory(num_bytes);
  auto const out = std::make_shared<MappedMemory>(path, offset, num_bytes, is_writable);
  if (offset % ALIGNMENT == 0) return out;
  if (is_writable) throw std::runtime_error("byte " + std::to_string(offset) + " of " + path + " is not aligned");
  // A file need not keep the alignment that every allocation of a GPU has.
  return device_memory(std::string(static_cast<char const*>(out->data()), num_bytes));
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

using Buffers = std::map<long, Value>;

// The lines of one job up to its last, and their effect.
class Job {
 public:
  Job(Library const& library, Buffers& buffers) : library_(library), buffers_(buffers) {}

  bool read() {
    for (std::string text; std::getline(std::cin, text);) {
      std::istringstream line(text);
      std::string word;
      line >> word;
      if (take(word, line)) continue;
      kind_ = word;
      read_last(line);
      return true;
    }
    return false;
  }

  void answer_it() {
    if (kind_ == "kernels") return answer_kernels();
    if (kind_ == "ops") return answer_ops();
    if (kind_ == "read") return answer_read();
    if (kind_ == "buffer") {
      own_.memory = device_memory(own_.bytes);
      return add_buffer();
    }
    if (kind_ == "map") {
      if (access_ != "read" && access_ != "write") throw std::runtime_error("`map` is for `read` or `write`");
      own_.memory = mapped(file_, offset_, bytes_of(own_), access_ == "write");
      return add_buffer();
    }
    if (kind_ != "run") throw std::runtime_error("`" + kind_ + "` is not known");
    answer_run();
  }

 private:
  // False for the last line of a job.
  bool take(std::string const& word, std::istringstream& line) {
    if (word == "setting") {
      std::string name, value;
      line >> name >> value;
      setenv(name.c_str(), value.c_str(), 1);
    } else if (word == "op") {
      line >> op_ >> version_;
    } else if (word == "attribute") {
      node_.fields.push_back(field_from(line));
    } else if (word == "input") {
      node_.inputs.push_back(value_from(line));
      inputs_.push_back(SENT);
    } else if (word == "use") {
      node_.inputs.emplace_back();
      inputs_.push_back(number_from(line));
    } else if (word == "once") {
      node_.one_enqueue = true;
    } else if (word == "keep") {
      kept_.push_back(number_from(line));
    } else if (word == "file") {
      std::getline(line >> std::ws, file_);
    } else if (word == "drop") {
      buffers_.erase(number_from(line));
    } else {
      return false;
    }
    return true;
  }

  void read_last(std::istringstream& line) {
    if (kind_ == "map") line >> access_;
    if (kind_ == "map" || kind_ == "buffer" || kind_ == "read") number_ = number_from(line);
    if (kind_ == "map") line >> offset_;
    if (kind_ == "map" || kind_ == "buffer") own_ = value_from(line);
    if (kind_ == "buffer") own_.bytes = bytes_from_input(bytes_of(own_));
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i] == SENT) node_.inputs[i].bytes = bytes_from_input(bytes_of(node_.inputs[i]));
    }
  }

  void answer_run() {
    node_.creator = library_.creator(op_, version_);
    node_.keep_outputs = !kept_.empty();
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i] != SENT) node_.inputs[i] = buffer(inputs_[i]);
    }
    std::vector<Value> const outputs = live(node_);
    if (node_.keep_outputs && kept_.size() != outputs.size()) {
      throw std::runtime_error(std::to_string(outputs.size()) + " outputs, of which " + std::to_string(kept_.size()) + " are kept");
    }
    for (size_t i = 0; i < kept_.size(); ++i) buffers_[kept_[i]] = outputs[i];
    answer(outputs);
  }

  void answer_read() const {
    Value out = buffer(number_);
    out.bytes = copy_of(out);
    answer({out});
  }

  void add_buffer() {
    own_.bytes.clear();
    buffers_[number_] = own_;
    answer({});
  }

  void answer_ops() const {
    std::cout << "ok " << library_.creators().size() << '\n';
    for (IPluginCreatorV3One* c : library_.creators()) std::cout << c->getPluginName() << ' ' << c->getPluginVersion() << '\n';
  }

  Value const& buffer(long number) const {
    auto const found = buffers_.find(number);
    if (found == buffers_.end()) throw std::runtime_error("there is no buffer " + std::to_string(number));
    return found->second;
  }

  static long number_from(std::istringstream& line) {
    long out = SENT;
    line >> out;
    return out;
  }

  static constexpr long SENT = -1;  // not a buffer: its bytes come with the job
  Library const& library_;
  Buffers& buffers_;
  std::string kind_, op_, version_, file_, access_;
  Node node_{};
  std::vector<long> inputs_, kept_;  // numbers of buffers
  Value own_{};                      // of `buffer` and `map`
  long number_ = SENT;
  size_t offset_ = 0;
};

}  // namespace
}  // namespace ds4::host

int main(int, char** arguments) {
  try {
    ds4::host::Library const library(arguments[1]);
    ds4::host::Buffers buffers;
    for (;;) {
      ds4::host::Job job(library, buffers);
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
