// One registration function per source file; module.cpp calls them all.
#pragma once
#include <nanobind/nanobind.h>

void register_cpu(nanobind::module_& m);
void register_ring(nanobind::module_& m);
void register_pack(nanobind::module_& m);
void register_field(nanobind::module_& m);
void register_field_matmul(nanobind::module_& m);
void register_bgv(nanobind::module_& m);
void register_dense(nanobind::module_& m);
void register_ckks(nanobind::module_& m);
void register_ckks_pointwise(nanobind::module_& m);
void register_recycle(nanobind::module_& m);
void register_mpc(nanobind::module_& m);
void register_steps(nanobind::module_& m);
void register_ot(nanobind::module_& m);
