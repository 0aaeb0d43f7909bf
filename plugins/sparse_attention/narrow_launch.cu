// Heads of 64, 128 and 192: the small models, and the cases of the ops.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Narrow64>(Operands const&);
template Status attend_by_tiles<Narrow128>(Operands const&);
template Status attend_by_tiles<Narrow192>(Operands const&);

}  // namespace ds4::sparse_attention
