//! The list of targets.

use crate::targets::{
    address, authority, authorization, dns, hbone_server, headers, packet, proxy_header, xds, zds,
};

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its binary as well.
    pub name: &'static str,
    /// Takes an input; panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Honest inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "address", run: address::run, seeds: address::seeds },
    Target { name: "authority", run: authority::run, seeds: authority::seeds },
    Target { name: "authorization", run: authorization::run, seeds: authorization::seeds },
    Target { name: "dns", run: dns::run, seeds: dns::seeds },
    Target { name: "hbone_server", run: hbone_server::run, seeds: hbone_server::seeds },
    Target { name: "headers", run: headers::run, seeds: headers::seeds },
    Target { name: "packet", run: packet::run, seeds: packet::seeds },
    Target { name: "proxy_header", run: proxy_header::run, seeds: proxy_header::seeds },
    Target { name: "xds", run: xds::run, seeds: xds::seeds },
    Target { name: "zds", run: zds::run, seeds: zds::seeds },
];

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::mutation::Mutator;

    /// What one target takes in a second or two.
    const MUTATIONS: usize = 20_000;

    /// Runs the seeds of a target and mutations of them; a panic names the input.
    fn smoke(name: &str) {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        seeds.iter().for_each(|seed| take(target, seed));
        let mut mutator = Mutator::new(StdRng::seed_from_u64(7), seeds);
        for _ in 0..MUTATIONS {
            take(target, &mutator.mutate());
        }
    }

    fn take(target: &Target, input: &[u8]) {
        let result = std::panic::catch_unwind(|| (target.run)(input));
        if let Err(panic) = result {
            eprintln!("{}: the input is {input:02x?}", target.name);
            std::panic::resume_unwind(panic);
        }
    }

    /// A test a target, so that they run side by side and each is named.
    macro_rules! smoke {
        ($($name:ident),* $(,)?) => {
            $(#[test]
            fn $name() {
                smoke(stringify!($name));
            })*

            #[test]
            fn every_target_has_its_test_and_its_binary() {
                let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                assert_eq!(names, [$(stringify!($name)),*]);
                for name in names {
                    let path = format!("{}/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
                    let binary = std::fs::read_to_string(path).unwrap();
                    assert!(binary.contains(&format!("fuzz::targets::{name}::run(input)")), "{binary}");
                }
            }
        };
    }

    smoke!(address, authority, authorization, dns, hbone_server, headers, packet, proxy_header, xds, zds);
}
