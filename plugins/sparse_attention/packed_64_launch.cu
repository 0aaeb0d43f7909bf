// Heads of 512, 64 to a tile, on packed rows.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Packed64>(Operands const&);

}  // namespace ds4::sparse_attention
