// Heads of 512, 32 to a tile, on packed rows.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Packed32>(Operands const&);

}  // namespace ds4::sparse_attention
