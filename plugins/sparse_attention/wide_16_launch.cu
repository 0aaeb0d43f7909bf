// Heads of 512, 16 to a tile.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Wide16>(Operands const&);

}  // namespace ds4::sparse_attention
