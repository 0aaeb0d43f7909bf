// Heads of 512, 64 to a tile.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Wide64>(Operands const&);

}  // namespace ds4::sparse_attention
