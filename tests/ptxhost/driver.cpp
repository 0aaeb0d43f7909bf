// The door through which tests launch a translated kernel: by name, on host memory.
#include <cstring>

#include "block.h"
#include "kernel_table.h"

extern "C" int launch(char const* name, unsigned blocks, unsigned threads, unsigned long dynamic_shared, void** arguments, int order, int copies_at_issue) {
  for (auto const* k = ds4::host::first_kernel(); k; k = k->next) {
    if (std::strcmp(k->name, name) != 0) continue;
    ds4::host::run({name, k->code, {blocks, 1, 1}, {threads, 1, 1}, k->static_shared_bytes + dynamic_shared, arguments},
                   {static_cast<ds4::host::Schedule::Order>(order), copies_at_issue != 0});
    return 0;
  }
  return 1;
}
