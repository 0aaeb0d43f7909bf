// Heads of 128 and 192 on packed rows: the small models.
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {

template Status attend_by_tiles<Packed128>(Operands const&);
template Status attend_by_tiles<Packed192>(Operands const&);

}  // namespace ds4::sparse_attention
