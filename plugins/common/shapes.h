// The shape terms of op_info.h, evaluated over whatever plays an axis: a number or TensorRT's expression.
#pragma once
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "op_info.h"

namespace ds4 {

// `axis(input, k)` and `rank(input)` read inputs, `attribute(i)` an attribute; `product` and `quotient` combine.
template <class Value, class Reader>
class ShapeEvaluator {
 public:
  ShapeEvaluator(OpInfo const& op, Reader& reader) : op_(op), reader_(reader) {}

  std::vector<Value> shape(char const* text) {
    std::vector<Value> axes;
    std::string_view rest = text;
    while (!rest.empty()) {
      size_t const end = rest.find(' ');
      add(rest.substr(0, end), axes);
      rest = end == std::string_view::npos ? "" : rest.substr(end + 1);
    }
    return axes;
  }

 private:
  void add(std::string_view term, std::vector<Value>& axes) {
    if (size_t const at = term.find("[:"); at != std::string_view::npos) {
      int const input = input_of(term.substr(0, at));
      int const end = reader_.rank(input) - (term.substr(at) == "[:]" ? 0 : 1);
      for (int k = 0; k < end; ++k) axes.push_back(reader_.axis(input, k));
      return;
    }
    size_t const sign = term.find_first_of("*/");
    if (sign == std::string_view::npos) {
      axes.push_back(value(term));
      return;
    }
    Value const left = value(term.substr(0, sign)), right = value(term.substr(sign + 1));
    axes.push_back(term[sign] == '*' ? reader_.product(left, right) : reader_.quotient(left, right));
  }

  Value value(std::string_view term) {
    size_t const dot = term.find('.');
    if (dot == std::string_view::npos) return reader_.attribute(attribute_of(term));
    return reader_.axis(input_of(term.substr(0, dot)), std::atoi(std::string(term.substr(dot + 1)).c_str()));
  }

  // The table is generated from the op, so a name that is not there is our own bug.
  int input_of(std::string_view name) const {
    for (size_t i = 0; i < op_.inputs.size(); ++i) {
      if (name == op_.inputs[i].name) return static_cast<int>(i);
    }
    std::abort();
  }
  int attribute_of(std::string_view name) const {
    for (size_t i = 0; i < op_.attributes.size(); ++i) {
      if (name == op_.attributes[i].name) return static_cast<int>(i);
    }
    std::abort();
  }

  OpInfo const& op_;
  Reader& reader_;
};

}  // namespace ds4
