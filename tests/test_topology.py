"""Devices that are not there: how the text of a compiled program is read."""

import re

import jax
import jax.numpy as jnp
import pytest

from slpojax import grid, topology
from slpojax.topology import Collective, collectives

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"

# A loop of five rounds, an operator of a reduction, which is no computation that runs, and all ways to write a group.
LOOP = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %state = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%number, %bound), direction=LT
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %all-reduce.1 = f32[8,4]{1,0:T(8,128)S(1)} all-reduce(%x), channel_id=1, replica_groups=REPLICAS, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%number, %all-reduce.1)
}

ENTRY %main (x: f32[8,4]) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %kernel = f32[8,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"notes":"of several lines"
}}, metadata={op_name="kernel"}
  %first = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%zero, %x)
  ROOT %while = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%first), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("[4,2]<=[8]", (0, 1)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", (0, 1)),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", (0, 2, 4, 6)),
        ("mesh['data'=2,'fsdp'=2,'tensor'=2], device_ids=(0,4,1,5,2,6,3,7) {'data','tensor'}", (0, 4, 2, 6)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'a'}", (0, 1)),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", (0, 1, 2, 3)),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", (0, 4)),
        ("{}", tuple(range(8))),
    ],
)
def test_a_loop_counts_as_often_as_it_runs_and_groups_are_read_in_every_form(groups, first):
    (found,) = collectives(HEADER + LOOP.replace("REPLICAS", groups))
    devices = len(first)
    assert found == Collective("all-reduce", 128, devices, 5, "", first)
    assert found.sent == pytest.approx(5 * 2 * 128 * (1 - 1 / devices))


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("{{0,2,4,6},{1,3,5,7}}", ("data", "fsdp")),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_the_axes_of_a_mesh_follow_from_a_group(groups, axes):
    (found,) = collectives(HEADER + LOOP.replace("REPLICAS", groups))
    assert topology.axes({"data": 2, "fsdp": 2, "tensor": 2}, found.group) == axes


def test_a_loop_that_ends_when_the_data_say_counts_as_often_as_one_says():
    text = HEADER + LOOP.replace("REPLICAS", "{}").replace("direction=LT", "direction=GT")
    with pytest.raises(ValueError, match="cannot tell how often a loop runs"):
        collectives(text)
    (found,) = collectives(text, rounds=3)
    assert found.times == 3


def test_a_loop_that_the_compiler_counted():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert collectives(HEADER + text.replace("REPLICAS", "[1,8]<=[8]"))[0].times == 7
    endless = LOOP.replace("constant(5)", "parameter(1)").replace("REPLICAS", "[1,8]<=[8]")
    with pytest.raises(ValueError, match="cannot tell how often a loop runs"):
        collectives(HEADER + endless)
    # Without a collective nobody asks.
    silent = "\n".join(line for line in endless.splitlines() if " all-reduce(" not in line)
    assert collectives(HEADER + silent) == ()


def test_a_loop_whose_counter_grows_by_two_a_round():
    text = HEADER + LOOP.replace("REPLICAS", "[1,8]<=[8]")
    more = """  %two = s32[]{:T(128)} constant(2)
  %next_number = s32[]{:T(128)} add(%number, %two)
  ROOT %next = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%next_number, %all-reduce.1)"""
    text = re.sub(r"  ROOT %next = .*", more, text)
    assert collectives(text)[0].times == 3


def test_what_starts_and_ends_apart_counts_once():
    text = """
%begins (x: bf16[4,8]) -> bf16[4,64] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[4,64]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={1}
}

%async_collective_fusion.1 (x: bf16[4,8], y: f32[2]) -> (f32[2], bf16[4,64]) {
  %all-gather.2 = bf16[4,64]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %both = (f32[2]{0}, bf16[4,64]{1,0}) tuple(%y, %all-gather.2)
}

%ends (x: bf16[4,8]) -> bf16[4,64] {
  ROOT %all-gather.3 = bf16[4,64]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={1}
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,64] {
  %x = bf16[4,8]{1,0} parameter(0)
  %async-collective-start.1 = (bf16[4,8]{1,0}, bf16[4,64]{1,0}) fusion(%x), kind=kCustom, calls=%begins
  %beside = (f32[2]{0}, bf16[4,64]{1,0}) fusion(%x, %y), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done.1 = bf16[4,64]{1,0} fusion(%beside), kind=kCustom, calls=%ends
  %all-gather-start = (f32[2]{0}, f32[16]{0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done = f32[16]{0} all-gather-done(%all-gather-start)
  %all-reduce-start = (f32[2]{0}, f32[4]{0}) all-reduce-start(%y, %z), replica_groups={}, to_apply=%add
  %all-reduce-done = (f32[2]{0}, f32[4]{0}) all-reduce-done(%all-reduce-start)
  %permuted = (s8[6]{0}, s8[6]{0}, u32[], u32[]) collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  %collective-permute-done = s8[6]{0} collective-permute-done(%permuted)
}
"""
    found = {(c.kind, c.size, c.devices) for c in collectives(HEADER + text)}
    expected = {("all-gather", 512, 8), ("all-gather", 64, 8), ("all-reduce", 24, 8), ("collective-permute", 6, 2)}
    assert found == expected and len(collectives(HEADER + text)) == 4


def test_a_reduction_of_which_each_device_keeps_a_part():
    text = """
%all-reduce-scatter.2.clone (input: bf16[16,32]) -> bf16[4,32] {
  %input = bf16[16,32]{1,0} parameter(0)
  %all-reduce.7 = bf16[16,32]{1,0} all-reduce(%input), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = bf16[4,32]{1,0} dynamic-slice(%all-reduce.7, %start, %zero), dynamic_slice_sizes={4,32}
}

ENTRY %main (x: bf16[16,32]) -> bf16[4,32] {
  %x = bf16[16,32]{1,0} parameter(0)
  %fused = bf16[4,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2.clone
  ROOT %plain = bf16[4,32]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}
"""
    assert collectives(HEADER + text) == (Collective("reduce-scatter", 1024, 4, 1, "", (0, 1, 2, 3)),) * 2


def test_transfers_between_slices():
    """What XLA writes for an all-reduce over two slices of eight: each device sends what it has after a scatter."""
    text = """
ENTRY %main (x: f32[64,8,128]) -> f32[64,8,128] {
  %x = f32[64,8,128]{2,1,0} parameter(0)
  %after = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (f32[64,8,128]{2,1,0}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="KIND"}
  %recv = (f32[64,8,128]{2,1,0}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="KIND"}
  ROOT %got = f32[64,8,128]{2,1,0} get-tuple-element(%recv), index=0
}
"""
    size = 4 * 64 * 8 * 128
    (found,) = collectives(HEADER + text.replace("KIND", "ALL_REDUCE"), slices=2)
    assert found == Collective("all-reduce", size, 2, 1, "", (0, 8), True) and found.sent == size
    (found,) = collectives(HEADER + text.replace("KIND", "ALL_GATHER"), slices=4)
    assert found[1:3] == (4 * size, 4) and found.group == (0, 8, 16, 24) and found.sent == 3 * size
    with pytest.raises(ValueError, match="a transfer between slices in an unknown form: bid"):
        collectives(HEADER + text.replace("KIND", "BID"), slices=2)


@pytest.mark.parametrize(
    ("name", "compiler", "number"),
    [
        ("v5e-16", "v5e:4x4", 16),
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-256", "v5e:16x16", 256),
        ("v5e-1", "v5e:2x2", 1),  # the compiler knows hosts of four
        ("v5litepod-8", "v5e:2x4", 8),
        ("v6e-8", "v6e:2x4", 8),
        ("v4-8", "v4:2x2x1", 4),  # names count TensorCores, two a chip
        ("v5p-128", "v5:4x4x4", 64),
        ("v5p:2x2x4", "v5:2x2x4", 16),
        ("v5:2x2x4", "v5:2x2x4", 16),
        ("tpu7x-8", "tpu7x:2x2x1", 4),
        ("2xv5e-256", "v5e:16x16", 512),
        ("4xv5p:2x2x4", "v5:2x2x4", 64),
        ("h200:8", "h200", 8),
        ("h100", "h100", 1),
    ],
)
def test_names_of_slices(name, compiler, number):
    assert topology.parse(name)[2:5:2] == (compiler, number)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e-17", "unknown topology 'v5e-17' \\(near: .*v5e-16.*or a slice by its sides, as v5e:4x4"),
        ("v7e-8", "unknown topology 'v7e-8' \\(near: v6e-8"),
        ("v5p:4x4", "expected a slice by its sides, as v5p:4x4x4"),
        ("v5e:0x4", "expected a slice by its sides"),
        ("h200:9", "the GPUs of one host, h200:1 to h200:8"),
        ("1xv5e-256", "expected 2 to 64 slices of TPUs"),
        ("2xh200:8", "expected 2 to 64 slices of TPUs"),
        ("2xv5e-1", "that are whole hosts, as 2xv5e-256"),
        ("2xv5e-17", "unknown topology 'v5e-17'"),
        ("", "unknown topology"),
    ],
)
def test_a_topology_that_there_is_not_is_refused_in_a_line(name, words):
    with pytest.raises(ValueError, match=words) as error:
        topology.parse(name)
    assert "\n" not in str(error.value)


def test_every_name_that_is_listed_is_read():
    for name in topology.names():
        assert topology.parse(name).name == name


def test_the_kernel_of_a_topology():
    assert [topology.kernel(name) for name in ("v5e-16", "h200:8", "")] == ["splash", "cudnn", "tiles"]


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule jit_step")


def test_the_program_of_this_machine():
    devices = grid.make(1, 8, 1)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=devices.rows)
    program = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x + jnp.sum(x, axis=0, keepdims=True), x))
    (found,) = collectives(program.lower(x).compile().as_text())
    assert (found.kind, found.size, found.devices, found.times) == ("all-reduce", 64, 8, 3)
    assert topology.axes({"data": 1, "fsdp": 8, "tensor": 1}, found.group) == ("fsdp",)
    assert topology.table([found])[2].startswith("| all-reduce | 8 | 3 | 0.000 |")
