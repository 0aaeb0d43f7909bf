#include "moe/launches.h"

namespace ds4::moe {

Status launch_fp8(Call const& c, bf16 const* x, float* partial, bool streamed, cudaStream_t stream) {
  return launch_all<Fp8Weight>(c, x, partial, streamed, stream);
}

}  // namespace ds4::moe
